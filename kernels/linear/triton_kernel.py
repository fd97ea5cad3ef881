"""Linear layers on Hopper: bf16, and FP8 with block-wise or per-channel scales, every one a single kernel.

Where tiles would leave the device idle, few rows go to `kernels.linear.split_kernel`, one to `vector_kernel` beside it.

Bytes: N * K weights of one or two bytes, T * K of rows, T * N results; a decode of T <= 64 reads the weights once
(5120 x 4096 in FP8: 21 MB, 5.2 us at 4.0 TB/s, H20 datasheet). FLOP: 2 * T * N * K; a prefill is bound by wgmma.
FP8 products are summed in fp32 outside of the tensor core after each 128 channels.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels import native
from kernels.launched import launched
from kernels.linear import split_kernel, vector_kernel
from kernels.linear.product import product, tile_places, tile_rows
from kernels.linear.tiles import INVARIANT_ROWS, Tile, linear_tile, num_splits, split_tile
from kernels.overlap import await_previous
from kernels.quantise.formats import Scaling
from kernels.quantise.triton_kernel import quantise

GROUP = 8  # row tiles that read the same weights one after the other, while these are in the L2 cache


@launched
@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    SCALING: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """One tile of out [num_rows, NUM_OUT] = x [num_rows, NUM_IN] times weight [NUM_OUT, NUM_IN] transposed."""
    await_previous()
    NUM_OUT_TILES: tl.constexpr = (NUM_OUT + BLOCK_OUT - 1) // BLOCK_OUT
    group = tl.program_id(0) // (GROUP * NUM_OUT_TILES)
    within = tl.program_id(0) % (GROUP * NUM_OUT_TILES)
    height = tl.minimum(tl.cdiv(num_rows, BLOCK_ROWS) - group * GROUP, GROUP)
    row, rows = tile_rows((group * GROUP + within % height) * BLOCK_ROWS, num_rows, BLOCK_ROWS)
    first_out = within // height * BLOCK_OUT
    sums, _ = product(
        x,
        x_scale,
        weight,
        weight_scale,
        rows,
        first_out,
        NUM_OUT=NUM_OUT,
        NUM_IN=NUM_IN,
        PAIR=False,
        SCALING=SCALING,
        ROWS_LEFT=ROWS_LEFT,
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_IN=BLOCK_IN,
    )
    at, is_wanted = tile_places(row, rows, num_rows, first_out, NUM_OUT, BLOCK_OUT)
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=is_wanted)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    arrivals: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """X [T, K] times weight [N, K] transposed -> [T, N] of `out_dtype`; x is quantised where the weight has scales."""
    if scale is None:
        return _launch(x, None, weight, None, arrivals, out_dtype)
    values, x_scale = quantise(x, Scaling.of(weight, scale))
    return linear_fp8(values, x_scale, weight, scale, arrivals, out_dtype)


def linear_fp8(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    arrivals: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """X [T, K] and weight [N, K] e4m3 with fp32 scales -> [T, N] of `out_dtype`.

    Block-wise: x_scale [T, K / 128], weight_scale [N / 128, K / 128], rounded up. Per channel: [T, 1] and [N, 1].
    `arrivals` are the weight's, see `kernels.linear.PackedWeight`.
    """
    return _launch(x, x_scale, weight, weight_scale, arrivals, out_dtype)


@cache
def constants(num_out: int, num_in: int, scaling: Scaling, tile: Tile) -> dict[str, int | str | bool]:
    """The constants that `linear_kernel` is compiled with."""
    return {"NUM_OUT": num_out, "NUM_IN": num_in, "SCALING": scaling.value, "GROUP": GROUP, **tile.constants()}


def _launch(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: torch.Tensor,
    weight_scale: torch.Tensor | None,
    arrivals: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    (num_rows, num_in), num_out = x.shape, weight.shape[0]
    out = torch.empty(num_rows, num_out, dtype=out_dtype, device=x.device)
    if num_rows == 0:
        return out
    scaling = Scaling.NONE if weight_scale is None else Scaling.of(weight, weight_scale)
    operands = (x, out if x_scale is None else x_scale, weight, out if weight_scale is None else weight_scale)
    if native.is_batch_invariant():
        return _launch_tiles(operands, out, scaling, linear_tile(INVARIANT_ROWS, num_out, weight.itemsize))
    if vector_kernel.takes(num_rows, num_out, num_in, weight.itemsize):
        vector_kernel.launch(operands, out, scaling)
        return out
    splits = num_splits(num_rows, num_out, num_in, weight.itemsize)
    if splits > 1:
        split_kernel.launch(operands, out, arrivals, scaling, splits, split_tile(num_rows, weight.itemsize))
        return out
    return _launch_tiles(operands, out, scaling, linear_tile(num_rows, num_out, weight.itemsize))


def _launch_tiles(
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    scaling: Scaling,
    tile: Tile,
) -> torch.Tensor:
    (num_rows, num_out), num_in = out.shape, operands[0].shape[1]
    num_programs = -(-num_rows // tile.block_rows) * -(-num_out // tile.block_out)
    linear_kernel[(num_programs,)](
        *operands,
        *(out, num_rows),
        **constants(num_out, num_in, scaling, tile),
        **tile.options,
    )
    return out
