"""Where a model's weights come from, seen by what puts the model together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch

from kernels.quantise.formats import Scaling


class WeightSource(Protocol):
    """Single tensors by their published names (model-spec §3), on the device that computes with them.

    Each is asked for once. It may lie in memory that others share: whoever keeps one keeps it by `own`.
    """

    def plain(self, name: str) -> torch.Tensor:
        """A weight in the activation dtype, dequantised where it is FP8."""
        ...

    def scaling(self, names: Collection[str]) -> Scaling:
        """The FP8 format that these weights are kept in; none where `plain` is what to ask for."""
        ...

    def fp8(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """An FP8 weight and its scales."""
        ...

    def fp32(self, name: str) -> torch.Tensor:
        """A weight that stays fp32 whatever the activations are."""
        ...

    def order(self, names: Sequence[str]) -> Sequence[int]:
        """The indices of names in the order in which it is best to ask for them."""
        ...


def own(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that holds no other's memory: itself, or a copy."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
