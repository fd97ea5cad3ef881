"""The plain matrix product, and the two of FP8."""

from __future__ import annotations

import torch

from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.quantise.reference import quantise_blocks, quantise_tokens


def linear(x: torch.Tensor, weight: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """X [T, K] times weight [N, K] transposed, accumulated in fp32, rounded once to `out_dtype`."""
    return (x.float() @ weight.float().T).to(out_dtype)


def linear_fp8(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """As `linear`, with weight e4m3 times its scales; x is quantised as the weight's format says."""
    is_blocks = Scaling.of(weight, scale) is Scaling.BLOCKS
    return linear_of_fp8(*(quantise_blocks(x) if is_blocks else quantise_tokens(x)), weight, scale, out_dtype)


def linear_of_fp8(
    values: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    """As `linear_fp8`, of rows that are quantised."""
    return linear(scaled(values, x_scale), scaled(weight, scale), out_dtype)


def scaled(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values [M, K] times scales, one per row [M, 1], per row and 128 channels, or per 128 x 128; fp32."""
    num_rows, width = values.shape
    if scale.shape != (num_rows, 1):
        scale = scale.repeat_interleave(FP8_BLOCK, 1)[:, :width]
    if scale.shape[0] != num_rows:
        scale = scale.repeat_interleave(FP8_BLOCK, 0)[:num_rows]
    return values.float() * scale
