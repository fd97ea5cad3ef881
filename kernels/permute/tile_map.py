"""Which rows of which expert each tile of a grouped product has, found on the device: no count crosses to the host.

Bytes: 4 * E read by each of E + 1 programs, from the second on out of L2, and 12 a tile written: 4.3 KB for 256
experts and 272 tiles, so that the launch is what it costs. FLOP: some 4 * E a program.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.permute.tiles import max_tiles

OPTIONS = launch_options(num_warps=1)
_CHUNK = 32  # tiles that a program writes at once


@triton.jit
def store_tiles(tiles: tl.tensor, counts: tl.tensor, num_tiles: tl.tensor, TILE_ROWS: tl.constexpr) -> None:
    """What `tile_map_kernel` writes, all experts at once: theirs are a tile or two each."""
    expert = tl.arange(0, counts.shape[0])
    tiles_of = (counts + TILE_ROWS - 1) // TILE_ROWS
    first_row = tl.cumsum(counts, 0) - counts
    first_tile = tl.cumsum(tiles_of, 0) - tiles_of
    for index in range(0, tl.max(tiles_of, 0)):
        place = tiles + 3 * (first_tile + index)
        exists = index < tiles_of
        tl.store(place, expert, mask=exists)
        tl.store(place + 1, first_row + index * TILE_ROWS, mask=exists)
        tl.store(place + 2, first_row + counts, mask=exists)
    for first_left in range(tl.sum(tiles_of, 0), num_tiles, counts.shape[0]):
        left = first_left + expert
        tl.store(tiles + 3 * left, tl.full(left.shape, -1, tl.int32), mask=left < num_tiles)


@launched
@triton.jit(do_not_specialize=["num_tiles"])
def tile_map_kernel(
    counts: tl.tensor,
    tiles: tl.tensor,
    num_tiles: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """The tiles of one expert; the program after the last expert marks those that are left over."""
    await_previous()
    expert = tl.program_id(0)
    index = tl.arange(0, EXPERTS_POW2)
    count = tl.load(counts + index, mask=index < NUM_EXPERTS, other=0)
    tiles_of = (count + BLOCK_ROWS - 1) // BLOCK_ROWS
    first_row = tl.sum(tl.where(index < expert, count, 0), 0)
    first_tile = tl.sum(tl.where(index < expert, tiles_of, 0), 0)
    own_rows = tl.sum(tl.where(index == expert, count, 0), 0)
    own_tiles = tl.sum(tl.where(index == expert, tiles_of, 0), 0)
    is_end = expert == NUM_EXPERTS
    last_tile = tl.where(is_end, num_tiles, tl.minimum(first_tile + own_tiles, num_tiles))
    for start in range(first_tile, last_tile, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        place = tiles + 3 * tile
        exists = tile < last_tile
        tl.store(place, tl.where(is_end, -1, expert) + tl.zeros_like(tile), mask=exists)
        tl.store(place + 1, first_row + (tile - first_tile) * BLOCK_ROWS, mask=exists)
        tl.store(place + 2, first_row + own_rows + tl.zeros_like(tile), mask=exists)


def tile_map(counts: torch.Tensor, num_rows: int, block_rows: int) -> torch.Tensor:
    """Tiles [N, 3] int32: expert or -1, first row, end of the expert's rows.

    counts [E] int32 on the device, summing to num_rows at most. N is the most tiles that so many rows can need.
    """
    num_experts = counts.shape[0]
    num_tiles = max_tiles(num_rows, num_experts, block_rows)
    tiles = torch.empty(num_tiles, 3, dtype=torch.int32, device=counts.device)
    tile_map_kernel[(num_experts + 1,)](counts, tiles, num_tiles, **constants(num_experts, block_rows), **OPTIONS)
    return tiles


@cache
def constants(num_experts: int, block_rows: int) -> dict[str, int]:
    """The constants that `tile_map_kernel` is compiled with."""
    return {
        "NUM_EXPERTS": num_experts,
        "EXPERTS_POW2": triton.next_power_of_2(num_experts),
        "BLOCK_ROWS": block_rows,
        "CHUNK": _CHUNK,
    }
