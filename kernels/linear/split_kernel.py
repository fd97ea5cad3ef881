"""A decode's linear layers whose outputs are too few to fill the device: the programs of a tile share its K.

Bytes: N * K weights once, of one or two bytes; the parts' sums, 4 * S * T * N, stay in the L2 cache (S = 4, T = 32,
N = 5120: 2.6 MB). FLOP: 2 * T * N * K. Weights come to the L2 cache while the kernel before this one still runs. The
last program of a tile to arrive sums its parts in their order, so that results do not depend on which that was.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.arrivals import is_last
from kernels.launched import launched
from kernels.linear.product import prefetch, product, tile_places, tile_rows
from kernels.linear.tiles import Tile
from kernels.overlap import await_previous
from kernels.quantise.formats import Scaling


@launched
@triton.jit(do_not_specialize=["num_rows"])
def split_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    out: tl.tensor,
    parts: tl.tensor,
    arrivals: tl.tensor,
    num_rows: tl.tensor,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    SCALING: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """One part of a tile of out [num_rows, NUM_OUT], into parts [NUM_SPLITS, num_rows, NUM_OUT]; rows fill one tile.

    arrivals [tiles] int32 counts the parts that are done; it is zero before and after.
    """
    split = tl.program_id(0) % NUM_SPLITS
    tile = tl.program_id(0) // NUM_SPLITS
    first_out = tile * BLOCK_OUT
    prefetch(weight, first_out, split, NUM_OUT, NUM_IN, NUM_SPLITS, BLOCK_OUT, NUM_THREADS=128)
    await_previous()
    row, rows = tile_rows(0, num_rows, BLOCK_ROWS)
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
        split=split,
        NUM_SPLITS=NUM_SPLITS,
    )
    at, is_wanted = tile_places(row, rows, num_rows, first_out, NUM_OUT, BLOCK_OUT)
    part_size = num_rows * NUM_OUT
    tl.store(parts + split * part_size + at, sums, mask=is_wanted)
    if is_last(arrivals + tile, NUM_SPLITS):
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
        for part in tl.static_range(NUM_SPLITS):
            total += tl.load(parts + part * part_size + at, mask=is_wanted, other=0.0, cache_modifier=".cg")
        tl.store(out + at, total.to(out.dtype.element_ty), mask=is_wanted)
        tl.store(arrivals + tile, 0)


@cache
def constants(num_out: int, num_in: int, scaling: Scaling, num_splits: int, tile: Tile) -> dict[str, int | str | bool]:
    """The constants that `split_kernel` is compiled with."""
    return {
        **{"NUM_OUT": num_out, "NUM_IN": num_in, "SCALING": scaling.value, "NUM_SPLITS": num_splits},
        **tile.constants(),
    }


def launch(
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    arrivals: torch.Tensor,
    scaling: Scaling,
    num_splits: int,
    tile: Tile,
) -> None:
    """Fill out [T, N], fp32 or bf16; operands as the kernel's first four."""
    (num_rows, num_out), num_in = out.shape, operands[0].shape[1]
    num_tiles = -(-num_out // tile.block_out)
    assert num_rows <= tile.block_rows and num_tiles <= len(arrivals), f"{num_rows} rows, {num_tiles} tiles"
    parts = torch.empty(num_splits, num_rows, num_out, dtype=torch.float32, device=out.device)
    split_kernel[(num_tiles * num_splits,)](
        *operands,
        *(out, parts, arrivals, num_rows),
        **constants(num_out, num_in, scaling, num_splits, tile),
        **tile.options,
    )
