"""The gate: hidden states to the experts of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from kernels.gate import GateShape, sigmoid_group_topk
from kernels.linear import PackedWeight, pack_weight
from router.dispatch import ExpertChoice


@dataclass(frozen=True, slots=True)
class Gate:
    """Group-limited sigmoid top-k, fp32 from the first product to the last weight (model-spec §2.6)."""

    weight: PackedWeight  # [E, H] fp32
    bias: torch.Tensor  # [E] fp32: moves the choice, never the weights
    shape: GateShape

    @classmethod
    def pack(cls, weight: torch.Tensor, bias: torch.Tensor, shape: GateShape) -> Self:
        """From weight [E, H] and bias [E], both fp32; the weight may be freed afterwards."""
        return cls(pack_weight(weight), bias, shape)

    def __call__(self, hidden: torch.Tensor) -> ExpertChoice:
        """Choose the experts of hidden [T, H]."""
        ids, weights = sigmoid_group_topk(hidden, self.weight, self.bias, self.shape)
        return ExpertChoice(ids=ids, weights=weights)
