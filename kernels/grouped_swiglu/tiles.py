"""How large the tiles of the experts' products are. Pure, as kernels/linear/tiles.py, whose `Tile` it fills in."""

from __future__ import annotations

from functools import cache

from kernels.linear.tiles import TARGET_PROGRAMS, Tile, padded_rows, steps_in_flight
from kernels.quantise.formats import FP8_BLOCK, Scaling


@cache
def rows_per_tile(num_rows: int, num_experts: int, itemsize: int, scaling: Scaling) -> int:
    """16, 32, 64 or 128: twice the mean of an expert, so that most experts' weights are read by one tile.

    64 at most for fp32 and for block-wise FP8, whose kernel keeps two sums and a step's product: 128 would spill.
    """
    mean = -(-num_rows // max(num_experts, 1))
    most = 64 if itemsize == 4 or scaling is Scaling.BLOCKS else 128
    return min(padded_rows(2 * mean), padded_rows(num_rows), most)


@cache
def narrow_tile_rows(num_rows: int, num_experts: int) -> int:
    """What `rows_per_tile` says whatever the format: 16 or 32, or 0 where it may be more."""
    rows = rows_per_tile(num_rows, num_experts, 1, Scaling.BLOCKS)
    return rows if rows <= 32 else 0


def defers_scales(num_tiles: int, block_rows: int, inner: int, scaling: Scaling) -> bool:
    """Whether the products of gate and up stay fp32, for down to quantise: block-wise, with few tiles.

    Where 128 outputs a program, a scale's worth, leave multiprocessors idle: one row of AntAngelMed, or two.
    """
    few_programs = num_tiles * -(-inner // FP8_BLOCK) <= TARGET_PROGRAMS
    return scaling is Scaling.BLOCKS and block_rows == 16 and few_programs


@cache
def gate_up_tile(block_rows: int, itemsize: int, scaling: Scaling, has_deferred_scales: bool = False) -> Tile:
    """The tile of gate and up: two weights beside the rows.

    Block-wise it holds 128 outputs, a scale's worth, or 64 that get their scales later (`defers_scales`).
    """
    if itemsize == 4:
        return Tile(block_rows=block_rows, block_out=64, block_in=32, num_warps=4, num_stages=2)
    if has_deferred_scales:
        return Tile(block_rows=block_rows, block_out=64, block_in=128, num_warps=4, num_stages=6)
    if scaling is Scaling.BLOCKS:
        num_warps, num_stages = 8 if block_rows == 64 else 4, steps_in_flight(block_rows, 256, 128)
        return Tile(block_rows=block_rows, block_out=128, block_in=128, num_warps=num_warps, num_stages=num_stages)
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


@cache
def quantising_down_tile(block_rows: int) -> Tile:
    """The tile of down where it quantises its rows: a step holds their 128 channels in fp32."""
    num_stages = steps_in_flight(4 * block_rows, 128, 128)
    return Tile(block_rows=block_rows, block_out=128, block_in=128, num_warps=4, num_stages=num_stages)
