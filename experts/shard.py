"""The weights of the experts that one rank holds, for one layer."""

from __future__ import annotations

from typing import Self

import torch

from experts.layout import ExpertShape
from kernels.grouped_swiglu import (
    PackedExperts,
    Weights,
    allocate_experts,
    allocate_fp8_experts,
    fill_expert,
    fill_fp8_expert,
    grouped_swiglu,
)
from kernels.linear import Fp8Rows
from kernels.permute import RowOrder
from kernels.quantise.formats import Scaling


class ExpertShard:
    """SwiGLU experts side by side, filled one at a time so that loading never holds two copies."""

    def __init__(self, packed: PackedExperts, num_experts: int) -> None:
        self._packed = packed
        self.num_experts = num_experts
        self.scaling = packed.scaling  # the format that the products read rows in

    @classmethod
    def allocate(
        cls, num_experts: int, shape: ExpertShape, dtype: torch.dtype, device: torch.device | None = None
    ) -> Self:
        """Room for `num_experts` experts. Zero is valid: such a rank only takes part in the exchange."""
        return cls(allocate_experts(num_experts, shape.hidden_size, shape.width, dtype, device), num_experts)

    @classmethod
    def allocate_fp8(
        cls, num_experts: int, shape: ExpertShape, dtype: torch.dtype, scaling: Scaling, device: torch.device
    ) -> Self:
        """Room for `num_experts` FP8 experts that take rows of `dtype`."""
        packed = allocate_fp8_experts(num_experts, shape.hidden_size, shape.width, dtype, scaling, device)
        return cls(packed, num_experts)

    def fill(self, index: int, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
        """Store the expert at a local index: gate, up [I, H], down [H, I]."""
        fill_expert(self._packed, index, gate, up, down)

    def fill_fp8(self, index: int, weights: Weights, scales: Weights) -> None:
        """Store the FP8 expert at a local index: gate, up, down and their scales."""
        fill_fp8_expert(self._packed, index, weights, scales)

    def __call__(
        self,
        rows: torch.Tensor,
        counts: torch.Tensor | None,
        order: RowOrder | None = None,
        quantised: Fp8Rows | None = None,
    ) -> torch.Tensor:
        """Run rows [R, H], sorted by local expert, `counts` [local experts] int32 of each; returns [R, H].

        None: all rows are the only expert's.
        With `order`, rows are [T, H], whose copies it sorts. `quantised`: what the rows are in the format of `scaling`.
        """
        return grouped_swiglu(rows, counts, self._packed, order, quantised)
