"""The gate: hidden states to the experts of each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.gate import GateShape, sigmoid_group_topk
from router.dispatch import ExpertChoice


@dataclass(frozen=True, slots=True)
class Gate:
    """Group-limited sigmoid top-k, fp32 from the first product to the last weight (model-spec §2.6)."""

    weight: torch.Tensor  # [E, H] fp32
    bias: torch.Tensor  # [E] fp32: moves the choice, never the weights
    shape: GateShape

    def __call__(self, hidden: torch.Tensor) -> ExpertChoice:
        """Choose the experts of hidden [T, H]."""
        ids, weights = sigmoid_group_topk(hidden, self.weight, self.bias, self.shape)
        return ExpertChoice(ids=ids, weights=weights)
