"""Activations to FP8: e4m3 values and fp32 scales, one a block of 128 channels or one a row.

Bytes, bf16: 3 * T * K and the scales; FLOP: about 3 * T * K.
"""

from __future__ import annotations

import torch

from kernels import native
from kernels.quantise import reference


def quantise_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """X [T, K] any float -> values [T, K] e4m3, scales [T, K / 128, rounded up] fp32; x is about values * scales.

    A scale is the largest magnitude of its 128 channels, 1e-10 at least, over 448. NaN makes the block's scale NaN.
    T = 0 is valid. Source: model-spec §4 (a).
    """
    _check(x)
    if native.runs_triton(x):
        from kernels.quantise import triton_kernel  # Triton is imported where it runs

        return triton_kernel.quantise_blocks(x)
    return reference.quantise_blocks(x)


def quantise_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """X [T, K] any float -> values [T, K] e4m3, scales [T, 1] fp32.

    A scale is the largest magnitude of its row over 448, 1 / (448 * 512) at least. NaN makes the row's scale NaN.
    T = 0 is valid. Source: model-spec §4 (b).
    """
    _check(x)
    if native.runs_triton(x):
        from kernels.quantise import triton_kernel

        return triton_kernel.quantise_tokens(x)
    return reference.quantise_tokens(x)


def _check(x: torch.Tensor) -> None:
    assert x.dim() == 2 and x.is_floating_point(), f"x is {x.dtype} {list(x.shape)}"
    assert x.is_contiguous(), f"x has strides {x.stride()}"
