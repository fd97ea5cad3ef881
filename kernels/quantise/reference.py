"""Activations to FP8 as the formulas of model-spec §4 read."""

from __future__ import annotations

import torch

from kernels.quantise.formats import FP8_BLOCK, FP8_MAX, SMALLEST_BLOCK_PEAK, SMALLEST_TOKEN_SCALE


def quantise_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.quantise.quantise_blocks`."""
    width = x.shape[1]
    padded = torch.nn.functional.pad(x.float(), (0, -width % FP8_BLOCK)).unflatten(1, (-1, FP8_BLOCK))
    scales = padded.abs().amax(2).clamp_min(SMALLEST_BLOCK_PEAK) / FP8_MAX
    values = (padded / scales[:, :, None]).flatten(1)[:, :width]
    return values.to(torch.float8_e4m3fn), scales


def quantise_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.quantise.quantise_tokens`."""
    scales = (x.float().abs().amax(1, keepdim=True) / FP8_MAX).clamp_min(SMALLEST_TOKEN_SCALE)
    return (x.float() / scales).to(torch.float8_e4m3fn), scales
