"""The two FP8 formats of model-spec §4: how scales lie, and their constants."""

from __future__ import annotations

import enum
from functools import cache

import torch

FP8_BLOCK = 128  # channels, and for weights outputs, that share one scale of the block-wise format
FP8_MAX = 448.0  # largest finite e4m3
SMALLEST_BLOCK_PEAK = 1e-10  # block-wise: a block's largest magnitude counts as this at least
SMALLEST_TOKEN_SCALE = 1 / (448 * 512)  # per token: the smallest scale


class Scaling(enum.Enum):
    """What the scales of a product's operands belong to. Weights are [N, K], activations [T, K]."""

    NONE = "none"  # there are none: the operands are not FP8
    BLOCKS = "blocks"  # weights one per 128 x 128, activations one per row and 128 channels
    CHANNELS = "channels"  # weights one per output, activations one per row

    def weight_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """Shape of the scales of a weight [N, K]."""
        assert self is not Scaling.NONE, "a weight that is not FP8 has no scales"
        if self is Scaling.CHANNELS:
            return num_out, 1
        return -(-num_out // FP8_BLOCK), -(-num_in // FP8_BLOCK)

    @classmethod
    def of(cls, weight: torch.Tensor, scale: torch.Tensor) -> Scaling:
        """Which format a weight [N, K] has beside these scales."""
        return _scaling_of(weight.shape, scale.shape)


@cache
def _scaling_of(weight: torch.Size, scale: torch.Size) -> Scaling:
    for scaling in (Scaling.CHANNELS, Scaling.BLOCKS):
        if scale == scaling.weight_shape(*weight):
            return scaling
    raise AssertionError(f"scales {list(scale)} of a weight {list(weight)}")
