"""Activations to FP8 on a GPU, one program a row, its values in registers from the load to the store.

Bytes, bf16: T * K * 2 read, T * K and 4 * T * ceil(K / 128) (or 4 * T) written: at K = 4096 12.4 KB a row.
FLOP: about 3 * T * K. A row's answer depends on nothing but the row.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.quantise.groups import group_scales, in_units, num_scales, peak_limits


@launched
@triton.jit
def quantise_kernel(
    x: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    GROUPS_POW2: tl.constexpr,
    GROUP: tl.constexpr,
    SMALLEST_PEAK: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    """One row of x [., WIDTH] as GROUPS_POW2 groups of GROUP channels: a scale each, or one where NUM_SCALES is one."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_POW2)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value = tl.load(x + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    scale = group_scales(value, NUM_SCALES == 1, SMALLEST_PEAK, LARGEST)
    tl.store(values + row * WIDTH + column, in_units(value, scale), mask=column < WIDTH)
    tl.store(scales + row * NUM_SCALES + group, scale, mask=group < NUM_SCALES)


def quantise_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.quantise.quantise_blocks`."""
    return quantise(x, Scaling.BLOCKS)


def quantise_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.quantise.quantise_tokens`."""
    return quantise(x, Scaling.CHANNELS)


def quantise(x: torch.Tensor, scaling: Scaling) -> tuple[torch.Tensor, torch.Tensor]:
    """X [T, K] -> values [T, K] e4m3 and scales as the format has them."""
    num_rows, width = x.shape
    values = torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_rows, num_scales(width, scaling), dtype=torch.float32, device=x.device)
    if num_rows:
        quantise_kernel[(num_rows,)](x, values, scales, **constants(width, scaling), **options(width))
    return values, scales


@cache
def constants(width: int, scaling: Scaling) -> dict[str, int | float]:
    """The constants that `quantise_kernel` is compiled with."""
    return {
        "WIDTH": width,
        "NUM_SCALES": num_scales(width, scaling),
        "GROUPS_POW2": triton.next_power_of_2(triton.cdiv(width, FP8_BLOCK)),
        "GROUP": FP8_BLOCK,
        **peak_limits(scaling),
    }


@cache
def options(width: int) -> dict[str, int | bool]:
    """How a row of this width is launched: sixteen bytes of bf16 a lane at least, eight warps at most."""
    return launch_options(min(8, max(1, triton.next_power_of_2(width) // 256)))
