"""A bias-free linear layer: y = x · Wᵀ, weights laid out once for the kernel that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from kernels.linear import PackedWeight, linear, linear_fp32_out, pack_weight


@dataclass(frozen=True, slots=True)
class Linear:
    """One weight [N, K]."""

    weight: PackedWeight

    @classmethod
    def pack(cls, weight: torch.Tensor) -> Self:
        """Lay out a weight [N, K]; the argument may be freed afterwards."""
        return cls(pack_weight(weight))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rows x [T, K] -> [T, N] in the dtype of x."""
        return linear(x, self.weight)

    def fp32(self, x: torch.Tensor) -> torch.Tensor:
        """Rows x [T, K] -> [T, N] fp32: the accumulators, not rounded to the dtype of x."""
        return linear_fp32_out(x, self.weight)
