"""The gate: hidden states to the experts of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from kernels.gate import GateShape, choose_and_sort, sigmoid_group_topk
from kernels.linear import PackedWeight, pack_weight
from router.dispatch import ExpertChoice
from router.load_stats import LoadStats


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

    def __call__(
        self, hidden: torch.Tensor, is_live: torch.Tensor | None = None, load: LoadStats | None = None
    ) -> ExpertChoice:
        """Choose the experts of hidden [T, H]; `is_live` [T] bool: none for the others, which are padding.

        `load` is given where all experts are here: a row alone is then sorted with its choice and counted in it.
        """
        copies = None
        if load is None:
            ids, weights = sigmoid_group_topk(hidden, self.weight, self.bias, self.shape, is_live)
        else:
            ids, weights, copies = choose_and_sort(hidden, self.weight, self.bias, self.shape, load.totals, is_live)
        return ExpertChoice(ids=ids, weights=weights, is_padded=is_live is not None, copies=copies)
