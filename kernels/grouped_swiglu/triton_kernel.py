"""The experts on Hopper: gate, up, SwiGLU and its FP8 scales in one grouped kernel, down in a second.

Bytes of a decode: 3 * H * I weights of each expert with rows (12.6 MB in FP8; 256 experts 3.2 GB, 0.81 ms at
4.0 TB/s, H20 datasheet) beside R * (2 * H + 2 * I) elements of rows, under 1% of that at one row an expert.
FLOP: 6 * R * H * I; a prefill of 128 rows an expert does 256 operations a byte of FP8 weights and is bound by wgmma.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl

from kernels import native
from kernels.grouped_swiglu import vector_kernel
from kernels.grouped_swiglu.activation import swiglu
from kernels.grouped_swiglu.tiles import down_tile, gate_up_tile, tiles_ahead
from kernels.launched import launched
from kernels.linear import Fp8Rows
from kernels.linear.product import prefetch, prefetch_span, product, tile_places, tile_rows
from kernels.linear.tiles import INVARIANT_ROWS, Tile
from kernels.overlap import await_previous
from kernels.permute import RowOrder
from kernels.permute.tile_map import tile_map
from kernels.permute.tiles import rows_per_tile
from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.quantise.groups import group_scales, in_units, peak_limits
from kernels.quantise.triton_kernel import quantise


@triton.jit
def _tile(
    tiles: tl.tensor, index: tl.tensor, num_rows: tl.tensor, ONE_EXPERT: tl.constexpr, BLOCK_ROWS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Expert, first row and the end of the expert's rows; ONE_EXPERT has all `num_rows`, and nothing is read."""
    if ONE_EXPERT:
        return tl.full((), 0, tl.int64), index * BLOCK_ROWS, num_rows
    else:
        at = tiles + 3 * index
        return tl.load(at).to(tl.int64), tl.load(at + 1), tl.load(at + 2)


@launched
@triton.jit(do_not_specialize=["num_rows"])
def gate_up_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    sources: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    down: tl.tensor,
    inner: tl.tensor,
    inner_scale: tl.tensor,
    tiles: tl.tensor,
    num_rows: tl.tensor,
    HAS_SOURCES: tl.constexpr,
    ONE_EXPERT: tl.constexpr,
    TILES_AHEAD: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    SCALES: tl.constexpr,
    SCALING: tl.constexpr,
    SMALLEST_PEAK: tl.constexpr,
    LARGEST: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """One tile of inner [R, INNER] = silu(gate x) * up x; weight [E, 2, INNER, HIDDEN], SCALES scales an expert.

    Row r of inner is of row sources[r] of x, or without HAS_SOURCES of row r. Where inner is e4m3, the tile's 128
    channels of a row get a scale in inner_scale [R, INNER / 128].
    Weights are brought to the L2 cache ahead: ONE_EXPERT's before the wait, since its few programs' steps in flight are
    no match for memory; of several, late in the first TILES_AHEAD tiles, those of `down`, which the next kernel reads.
    """
    NUM_OUT_TILES: tl.constexpr = (INNER + BLOCK_OUT - 1) // BLOCK_OUT
    DOWN_BYTES: tl.constexpr = HIDDEN * INNER // NUM_OUT_TILES * down.dtype.element_ty.primitive_bitwidth // 8
    tile = tl.program_id(0) // NUM_OUT_TILES
    first_out = tl.program_id(0) % NUM_OUT_TILES * BLOCK_OUT
    if ONE_EXPERT and TILES_AHEAD > 0:
        prefetch(weight, first_out, 0, INNER, HIDDEN, 2, BLOCK_OUT, 2 * BLOCK_OUT, True)  # half of each output's
    await_previous()
    expert, first_row, end = _tile(tiles, tile, num_rows, ONE_EXPERT, BLOCK_ROWS)
    if (expert < 0) | (first_row >= end):  # all three, so that they are read at once
        return
    row, rows = tile_rows(first_row, end, BLOCK_ROWS)
    x_rows = rows
    if HAS_SOURCES:
        x_rows = tl.load(sources + rows).to(tl.int64)
    gate, up = product(
        x,
        x_scale,
        weight + expert * (2 * INNER * HIDDEN),
        weight_scale + expert * SCALES,
        x_rows,
        first_out,
        NUM_OUT=INNER,
        NUM_IN=HIDDEN,
        PAIR=True,
        SCALING=SCALING,
        ROWS_LEFT=ROWS_LEFT,
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_IN=BLOCK_IN,
        next_weight=down + expert * (HIDDEN * INNER) + first_out // BLOCK_OUT * (HIDDEN * INNER // NUM_OUT_TILES),
        is_next_wanted=tile < TILES_AHEAD,
        NEXT_BYTES=DOWN_BYTES if TILES_AHEAD > 0 and not ONE_EXPERT else 0,
    )
    at, is_wanted = tile_places(row, rows, end, first_out, INNER, BLOCK_OUT)
    activated = swiglu(gate, up)
    if inner.dtype.element_ty == tl.float8e4nv:
        activated = tl.where(is_wanted, activated, 0.0)
        scale = group_scales(activated, False, SMALLEST_PEAK, LARGEST)
        tl.store(inner_scale + rows * ((INNER + 127) // 128) + first_out // 128, scale, mask=row < end)
        result = in_units(activated, scale)
    else:
        result = activated.to(inner.dtype.element_ty)
    tl.store(inner + at, result, mask=is_wanted)


@launched
@triton.jit(do_not_specialize=["num_rows"])
def down_kernel(
    inner: tl.tensor,
    inner_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    num_rows: tl.tensor,
    ONE_EXPERT: tl.constexpr,
    TILES_AHEAD: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    SCALES: tl.constexpr,
    SCALING: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """One tile of out [R, HIDDEN] = down inner [R, INNER]; weight [E, HIDDEN, INNER], SCALES scales an expert.

    ONE_EXPERT's weights come to the L2 cache before the wait, for the first TILES_AHEAD tiles.
    """
    NUM_OUT_TILES: tl.constexpr = (HIDDEN + BLOCK_OUT - 1) // BLOCK_OUT
    SLAB_BYTES: tl.constexpr = BLOCK_OUT * INNER * weight.dtype.element_ty.primitive_bitwidth // 8
    tile = tl.program_id(0) // NUM_OUT_TILES
    first_out = tl.program_id(0) % NUM_OUT_TILES * BLOCK_OUT
    if ONE_EXPERT and TILES_AHEAD > 0:
        prefetch_span(weight + first_out * INNER, tile < TILES_AHEAD, SLAB_BYTES)
    await_previous()
    expert, first_row, end = _tile(tiles, tile, num_rows, ONE_EXPERT, BLOCK_ROWS)
    if (expert < 0) | (first_row >= end):  # all three, so that they are read at once
        return
    row, rows = tile_rows(first_row, end, BLOCK_ROWS)
    sums, _ = product(
        inner,
        inner_scale,
        weight + expert * (HIDDEN * INNER),
        weight_scale + expert * SCALES,
        rows,
        first_out,
        NUM_OUT=HIDDEN,
        NUM_IN=INNER,
        PAIR=False,
        SCALING=SCALING,
        ROWS_LEFT=ROWS_LEFT,
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_IN=BLOCK_IN,
    )
    at, is_wanted = tile_places(row, rows, end, first_out, HIDDEN, BLOCK_OUT)
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=is_wanted)


def grouped_swiglu(
    rows: torch.Tensor,
    counts: torch.Tensor | None,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    arrivals: torch.Tensor | None = None,
    order: RowOrder | None = None,
    quantised: Fp8Rows | None = None,
) -> torch.Tensor:
    """Rows [R, H] sorted by expert -> [R, H] of the same dtype; gate_up [E, 2, I, H], down [E, H, I].

    With `order` rows are [T, H], whose R copies it sorts. Without `counts` all rows are the only expert's.
    With `scales` of gate_up and of down the weights are e4m3, and rows are quantised on the way. Block-wise they are
    [E, 2, I / 128, H / 128] and [E, H / 128, I / 128], rounded up, per channel [E, 2, I, 1] and [E, H, 1]. `quantised`:
    what the rows were quantised to already.
    """
    num_experts, _, inner_size, hidden = gate_up.shape
    num_rows = len(rows if order is None else order.sources)
    out = rows.new_empty(num_rows, hidden)
    if num_rows == 0:
        return out
    scaling = Scaling.NONE if scales is None else Scaling.of(down[0], scales[1][0])
    block_rows = rows_per_tile(num_rows, num_experts, gate_up.itemsize, scaling)
    if native.is_batch_invariant():
        block_rows = INVARIANT_ROWS
    x, x_scale = _quantised(rows, scaling) if quantised is None else (quantised.values, quantised.scales)
    is_one_token = vector_kernel.takes(len(rows), num_rows, hidden, inner_size, scaling)
    if is_one_token and not native.is_batch_invariant() and scales is not None and arrivals is not None:
        of_copies = None if counts is None else _tiles(counts, num_rows, block_rows, order)
        vector_kernel.launch((x, x_scale), (gate_up, down), scales, arrivals, of_copies, out)
        return out
    is_one = counts is None
    if counts is None:
        tiles, num_tiles = rows, -(-num_rows // block_rows)  # any pointer: the kernels know
    else:
        tiles = _tiles(counts, num_rows, block_rows, order)
        num_tiles = len(tiles)
    gate_up_scales, down_scales = (tiles, tiles) if scales is None else scales  # any pointer where there are none
    inner_dtype = x.dtype if scaling is Scaling.BLOCKS else rows.dtype
    inner = torch.empty(num_rows, inner_size, dtype=inner_dtype, device=rows.device)
    num_blocks = -(-inner_size // FP8_BLOCK)
    inner_scale = torch.empty(num_rows, num_blocks, dtype=torch.float32, device=rows.device)
    tile = gate_up_tile(block_rows, gate_up.itemsize, scaling)
    ahead = tiles_ahead(num_tiles, num_experts, hidden, inner_size, gate_up.itemsize, tile)
    gate_up_kernel[(num_tiles * -(-inner_size // tile.block_out),)](
        *(x, x_scale, tiles if order is None else order.sources),
        *(gate_up, gate_up_scales, down, inner, inner_scale, tiles, num_rows),
        **gate_up_constants(hidden, inner_size, scaling, tile, order is not None, is_one, ahead),
        **tile.options,
    )
    if scaling is Scaling.CHANNELS:
        inner, inner_scale = quantise(inner, scaling)
    tile = down_tile(block_rows, gate_up.itemsize)
    down_kernel[(num_tiles * -(-hidden // tile.block_out),)](
        *(inner, inner_scale, down, down_scales, out, tiles, num_rows),
        **down_constants(hidden, inner_size, scaling, tile, is_one, ahead if is_one else 0),
        **tile.options,
    )
    return out


def _tiles(counts: torch.Tensor, num_rows: int, block_rows: int, order: RowOrder | None) -> torch.Tensor:
    """What `_tile` reads of several experts."""
    if order is not None and order.tile_rows == block_rows:
        return order.tiles
    return tile_map(counts, num_rows, block_rows)


def _quantised(rows: torch.Tensor, scaling: Scaling) -> tuple[torch.Tensor, torch.Tensor]:
    """What gate and up read, and its scales, or any pointer where there are none."""
    return (rows, rows) if scaling is Scaling.NONE else quantise(rows, scaling)


@cache
def gate_up_constants(
    hidden: int, inner: int, scaling: Scaling, tile: Tile, has_sources: bool, is_one_expert: bool, ahead: int
) -> dict[str, int | float | str | bool]:
    """What `gate_up_kernel` is compiled with."""
    return {
        "HAS_SOURCES": has_sources,
        "ONE_EXPERT": is_one_expert,
        "TILES_AHEAD": ahead,
        "HIDDEN": hidden,
        "INNER": inner,
        "SCALES": 2 * num_scales(inner, hidden, scaling),
        "SCALING": scaling.value,
        **peak_limits(Scaling.BLOCKS),
        **tile.constants(),
    }


@cache
def down_constants(
    hidden: int, inner: int, scaling: Scaling, tile: Tile, is_one_expert: bool, ahead: int
) -> dict[str, int | float | str | bool]:
    """What `down_kernel` is compiled with."""
    return {
        "ONE_EXPERT": is_one_expert,
        "TILES_AHEAD": ahead,
        "HIDDEN": hidden,
        "INNER": inner,
        "SCALES": num_scales(hidden, inner, scaling),
        "SCALING": scaling.value,
        **tile.constants(),
    }


def num_scales(num_out: int, num_in: int, scaling: Scaling) -> int:
    """Scales of one weight."""
    return 0 if scaling is Scaling.NONE else math.prod(scaling.weight_shape(num_out, num_in))
