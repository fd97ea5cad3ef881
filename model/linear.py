"""A bias-free linear layer: y = x · Wᵀ, weights laid out once for the kernel that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from kernels.linear import (
    Fp8Rows,
    PackedWeight,
    linear,
    linear_fp32_out,
    linear_of_fp8,
    pack_fp8_weight,
    pack_weight,
)
from kernels.quantise.formats import Scaling


@dataclass(frozen=True, slots=True)
class Linear:
    """One weight [N, K]."""

    weight: PackedWeight

    @classmethod
    def pack(cls, weight: torch.Tensor) -> Self:
        """Lay out a weight [N, K]; the argument may be freed afterwards."""
        return cls(pack_weight(weight))

    @classmethod
    def pack_fp8(cls, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Self:
        """Keep an FP8 weight [N, K] with its scales, for rows of `dtype`."""
        return cls(pack_fp8_weight(weight, scale, dtype))

    @property
    def scaling(self) -> Scaling:
        """The format that rows are quantised to for it."""
        scale = self.weight.scale
        return Scaling.NONE if scale is None else Scaling.of(self.weight.data, scale)

    def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        """Rows x [T, K], or what they are quantised to -> [T, N] in the dtype of the rows."""
        return linear_of_fp8(x, self.weight) if isinstance(x, Fp8Rows) else linear(x, self.weight)

    def fp32(self, x: torch.Tensor) -> torch.Tensor:
        """Rows x [T, K] -> [T, N] fp32: the accumulators, not rounded to the dtype of x."""
        return linear_fp32_out(x, self.weight)
