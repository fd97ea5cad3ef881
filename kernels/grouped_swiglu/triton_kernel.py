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
from kernels.grouped_swiglu.quantising_down import quantising_down_constants, quantising_down_kernel
from kernels.grouped_swiglu.tile_map import tile_map
from kernels.grouped_swiglu.tiles import defers_scales, down_tile, gate_up_tile, quantising_down_tile, rows_per_tile
from kernels.launched import launched
from kernels.linear import Fp8Rows
from kernels.linear.product import product
from kernels.linear.tiles import INVARIANT_ROWS, Tile
from kernels.overlap import await_previous
from kernels.permute import RowOrder
from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.quantise.groups import group_scales, in_units, peak_limits
from kernels.quantise.triton_kernel import quantise


@launched
@triton.jit
def gate_up_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    sources: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    inner: tl.tensor,
    inner_scale: tl.tensor,
    tiles: tl.tensor,
    HAS_SOURCES: tl.constexpr,
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
    """
    await_previous()
    NUM_OUT_TILES: tl.constexpr = (INNER + BLOCK_OUT - 1) // BLOCK_OUT
    tile = tiles + 3 * (tl.program_id(0) // NUM_OUT_TILES)
    expert = tl.load(tile).to(tl.int64)
    if expert < 0:
        return
    row = tl.load(tile + 1) + tl.arange(0, BLOCK_ROWS)
    end = tl.load(tile + 2)
    rows = tl.minimum(row, end - 1).to(tl.int64)
    x_rows = rows
    if HAS_SOURCES:
        x_rows = tl.load(sources + rows).to(tl.int64)
    first_out = tl.program_id(0) % NUM_OUT_TILES * BLOCK_OUT
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
    )
    outs = first_out + tl.arange(0, BLOCK_OUT)
    is_wanted = (row < end)[:, None] & (outs < INNER)[None, :]
    swiglu = gate / (1.0 + tl.exp(tl.minimum(-gate, 80.0))) * up  # e^80 is zero below, and stays finite
    if inner.dtype.element_ty == tl.float8e4nv:
        swiglu = tl.where(is_wanted, swiglu, 0.0)
        scale = group_scales(swiglu, False, SMALLEST_PEAK, LARGEST)
        tl.store(inner_scale + rows * ((INNER + 127) // 128) + first_out // 128, scale, mask=row < end)
        result = in_units(swiglu, scale)
    else:
        result = swiglu.to(inner.dtype.element_ty)
    tl.store(inner + rows[:, None] * INNER + outs[None, :], result, mask=is_wanted)


@launched
@triton.jit
def down_kernel(
    inner: tl.tensor,
    inner_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    SCALES: tl.constexpr,
    SCALING: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """One tile of out [R, HIDDEN] = down inner [R, INNER]; weight [E, HIDDEN, INNER], SCALES scales an expert."""
    await_previous()
    NUM_OUT_TILES: tl.constexpr = (HIDDEN + BLOCK_OUT - 1) // BLOCK_OUT
    tile = tiles + 3 * (tl.program_id(0) // NUM_OUT_TILES)
    expert = tl.load(tile).to(tl.int64)
    if expert < 0:
        return
    row = tl.load(tile + 1) + tl.arange(0, BLOCK_ROWS)
    end = tl.load(tile + 2)
    rows = tl.minimum(row, end - 1).to(tl.int64)
    first_out = tl.program_id(0) % NUM_OUT_TILES * BLOCK_OUT
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
    outs = first_out + tl.arange(0, BLOCK_OUT)
    is_wanted = (row < end)[:, None] & (outs < HIDDEN)[None, :]
    tl.store(out + rows[:, None] * HIDDEN + outs[None, :], sums.to(out.dtype.element_ty), mask=is_wanted)


def grouped_swiglu(
    rows: torch.Tensor,
    counts: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    order: RowOrder | None = None,
    quantised: Fp8Rows | None = None,
) -> torch.Tensor:
    """Rows [R, H] sorted by expert -> [R, H] of the same dtype; gate_up [E, 2, I, H], down [E, H, I].

    With `order` rows are [T, H], whose R copies it sorts.
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
    is_mapped = order is not None and order.tile_rows == block_rows
    tiles = order.tiles if order is not None and is_mapped else tile_map(counts, num_rows, block_rows)
    gate_up_scales, down_scales = (tiles, tiles) if scales is None else scales  # any pointer where there are none
    x, x_scale = _quantised(rows, scaling) if quantised is None else (quantised.values, quantised.scales)
    has_deferred_scales = defers_scales(len(tiles), block_rows, inner_size, scaling)
    inner_dtype = torch.float32 if has_deferred_scales else x.dtype if scaling is Scaling.BLOCKS else rows.dtype
    inner = torch.empty(num_rows, inner_size, dtype=inner_dtype, device=rows.device)
    num_blocks = -(-inner_size // FP8_BLOCK)
    inner_scale = torch.empty(num_rows, num_blocks, dtype=torch.float32, device=rows.device)
    tile = gate_up_tile(block_rows, gate_up.itemsize, scaling, has_deferred_scales)
    gate_up_kernel[(len(tiles) * -(-inner_size // tile.block_out),)](
        *(x, x_scale, tiles if order is None else order.sources),
        *(gate_up, gate_up_scales, inner, inner_scale, tiles),
        **gate_up_constants(hidden, inner_size, scaling, tile, order is not None),
        **tile.options,
    )
    if has_deferred_scales:
        tile = quantising_down_tile(block_rows)
        quantising_down_kernel[(len(tiles) * -(-hidden // tile.block_out),)](
            *(inner, down, down_scales, out, tiles),
            **quantising_down_constants(hidden, inner_size, tile),
            **tile.options,
        )
        return out
    if scaling is Scaling.CHANNELS:
        inner, inner_scale = quantise(inner, scaling)
    tile = down_tile(block_rows, gate_up.itemsize)
    down_kernel[(tiles.shape[0] * -(-hidden // tile.block_out),)](
        *(inner, inner_scale, down, down_scales, out, tiles),
        **down_constants(hidden, inner_size, scaling, tile),
        **tile.options,
    )
    return out


def _quantised(rows: torch.Tensor, scaling: Scaling) -> tuple[torch.Tensor, torch.Tensor]:
    """What gate and up read, and its scales, or any pointer where there are none."""
    return (rows, rows) if scaling is Scaling.NONE else quantise(rows, scaling)


@cache
def gate_up_constants(
    hidden: int, inner: int, scaling: Scaling, tile: Tile, has_sources: bool
) -> dict[str, int | float | str | bool]:
    """What `gate_up_kernel` is compiled with."""
    return {
        "HAS_SOURCES": has_sources,
        "HIDDEN": hidden,
        "INNER": inner,
        "SCALES": 2 * num_scales(inner, hidden, scaling),
        "SCALING": scaling.value,
        **peak_limits(Scaling.BLOCKS),
        **tile.constants(),
    }


@cache
def down_constants(hidden: int, inner: int, scaling: Scaling, tile: Tile) -> dict[str, int | float | str | bool]:
    """What `down_kernel` is compiled with."""
    scales = num_scales(hidden, inner, scaling)
    return {"HIDDEN": hidden, "INNER": inner, "SCALES": scales, "SCALING": scaling.value, **tile.constants()}


def num_scales(num_out: int, num_in: int, scaling: Scaling) -> int:
    """Scales of one weight."""
    return 0 if scaling is Scaling.NONE else math.prod(scaling.weight_shape(num_out, num_in))
