"""How large the tiles of the experts' products are. Pure, as kernels/linear/tiles.py, whose `Tile` it fills in."""

from __future__ import annotations

from functools import cache

from kernels.linear.tiles import MAX_NARROW_ROWS, TARGET_PROGRAMS, Tile, steps_in_flight
from kernels.quantise.formats import Scaling

L2_BYTES = 32 << 20  # of an H100's 50 MB, what may wait there: the rest is of what is read meanwhile


@cache
def tiles_ahead(num_tiles: int, num_experts: int, hidden: int, inner: int, itemsize: int, gate_up: Tile) -> int:
    """Of how many tiles the weights are brought to the L2 cache ahead of their products, none where that is no gain.

    The only expert's, where all of it fits. Of several the weights of down, while programs of gate and up run at once.
    """
    if inner % 128 or hidden % 128 or gate_up.rows_left or itemsize == 4:
        return 0
    down_bytes = hidden * inner * itemsize
    if num_experts == 1:
        return int(3 * down_bytes <= L2_BYTES)
    runs_at_once = num_tiles * (inner // gate_up.block_out) <= TARGET_PROGRAMS
    return L2_BYTES // down_bytes if runs_at_once else 0


@cache
def gate_up_tile(block_rows: int, itemsize: int, scaling: Scaling) -> Tile:
    """The tile of gate and up: two weights beside the rows.

    Block-wise it holds 128 outputs, a scale's worth, and few rows leave one program a multiprocessor five steps.
    """
    if itemsize == 4:
        return Tile(block_rows=block_rows, block_out=64, block_in=32, num_warps=4, num_stages=2)
    if scaling is Scaling.BLOCKS:
        num_stages = 5 if block_rows <= MAX_NARROW_ROWS else 4
        return Tile(block_rows=block_rows, block_out=128, block_in=128, num_warps=8, num_stages=num_stages)
    if block_rows <= 64:
        num_stages = steps_in_flight(block_rows, 128, 128 * itemsize)
        return Tile(block_rows=block_rows, block_out=64, block_in=128, num_warps=4, num_stages=num_stages)
    return Tile(block_rows=block_rows, block_out=128, block_in=128 // itemsize, num_warps=8, num_stages=4)


@cache
def down_tile(block_rows: int, itemsize: int) -> Tile:
    """The tile of down: a short walk over I for many outputs."""
    if itemsize == 4:
        return Tile(block_rows=block_rows, block_out=64, block_in=32, num_warps=4, num_stages=3)
    block_in = 128 // itemsize
    if block_rows <= 64:
        num_stages = steps_in_flight(block_rows, 128, 128)
        return Tile(block_rows=block_rows, block_out=128, block_in=block_in, num_warps=4, num_stages=num_stages)
    return Tile(block_rows=block_rows, block_out=128, block_in=block_in, num_warps=8, num_stages=4)
