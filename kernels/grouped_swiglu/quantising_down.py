"""The down product of few rows, which quantises the products of gate and up itself.

So gate and up may be cut into less than the 128 channels that share a scale, and into twice as many programs.
Bytes: H * I weights of each expert with rows, and its rows' 4 * I once for each BLOCK_OUT outputs, out of L2: one row
of an expert of AntAngelMed 4.2 MB and 32 times 4 KB. FLOP: 2 * R * H * I, and about 3 * R * I a program to quantise.
"""

from __future__ import annotations

from functools import cache

import triton
import triton.language as tl

from kernels.launched import launched
from kernels.linear.tiles import Tile
from kernels.overlap import await_previous
from kernels.quantise.formats import Scaling
from kernels.quantise.groups import group_scales, in_units, peak_limits


@launched
@triton.jit
def quantising_down_kernel(
    inner: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    SMALLEST_PEAK: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """One tile of out [R, HIDDEN] = down inner [R, INNER] fp32; weight [E, HIDDEN, INNER] e4m3, a scale a 128 x 128.

    BLOCK_IN is 128, so that each step is quantised with its own scales.
    """
    await_previous()
    NUM_OUT_TILES: tl.constexpr = (HIDDEN + BLOCK_OUT - 1) // BLOCK_OUT
    NUM_SCALES: tl.constexpr = (INNER + 127) // 128
    SCALES: tl.constexpr = (HIDDEN + 127) // 128 * NUM_SCALES
    tile = tiles + 3 * (tl.program_id(0) // NUM_OUT_TILES)
    expert = tl.load(tile).to(tl.int64)
    if expert < 0:
        return
    row = tl.load(tile + 1) + tl.arange(0, BLOCK_ROWS)
    exists = (row < tl.load(tile + 2))[:, None]
    first_out = tl.program_id(0) % NUM_OUT_TILES * BLOCK_OUT
    outs = first_out + tl.arange(0, BLOCK_OUT)
    k = tl.arange(0, BLOCK_IN)
    inner_at = inner + row.to(tl.int64)[:, None] * INNER + k[None, :]
    weight_at = weight + expert * (HIDDEN * INNER) + tl.minimum(outs, HIDDEN - 1)[:, None] * INNER + k[None, :]
    weight_scale_at = weight_scale + expert * SCALES + first_out // 128 * NUM_SCALES
    sums = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    block_scale = tl.load(weight_scale_at)
    for step in range(0, NUM_SCALES):
        start = step * BLOCK_IN
        # Rows that do not exist are not read: with one row of sixteen they would be half of all that is read.
        values = tl.load(inner_at + start, mask=exists & (start + k < INNER)[None, :], other=0.0)
        if INNER % BLOCK_IN == 0:
            weight_tile = tl.load(weight_at + start)
        else:
            weight_tile = tl.load(weight_at + start, mask=(start + k < INNER)[None, :], other=0.0)
        scale = group_scales(values, False, SMALLEST_PEAK, LARGEST)
        part = tl.dot(weight_tile, tl.trans(in_units(values, scale)), max_num_imprecise_acc=128)
        sums += part * (scale * block_scale)[None, :]
        block_scale = tl.load(weight_scale_at + tl.minimum(step + 1, NUM_SCALES - 1))  # no product waits for it
    is_wanted = exists & (outs < HIDDEN)[None, :]
    out_at = out + row.to(tl.int64)[:, None] * HIDDEN + outs[None, :]
    tl.store(out_at, tl.trans(sums).to(out.dtype.element_ty), mask=is_wanted)


@cache
def quantising_down_constants(hidden: int, inner: int, tile: Tile) -> dict[str, int | float | bool]:
    """What `quantising_down_kernel` is compiled with."""
    sizes = {"BLOCK_OUT": tile.block_out, "BLOCK_ROWS": tile.block_rows, "BLOCK_IN": tile.block_in}
    return {"HIDDEN": hidden, "INNER": inner, **peak_limits(Scaling.BLOCKS), **sizes}
