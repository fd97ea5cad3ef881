"""Where a model's weights come from, seen by what puts the model together."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import torch

from kernels.quantise.formats import Scaling


class WeightSource(Protocol):
    """Single tensors by their published names (model-spec §3), on the device that computes with them."""

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
