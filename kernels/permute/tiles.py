"""How many rows of one expert a tile of the experts' products has. Pure, as kernels/linear/tiles.py."""

from __future__ import annotations

from functools import cache

from kernels.linear.tiles import padded_rows
from kernels.quantise.formats import Scaling


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


def max_tiles(num_rows: int, num_experts: int, tile_rows: int) -> int:
    """The most tiles that `num_rows` rows can need, however they fall: each expert may have one that is not full."""
    return num_rows // tile_rows + min(num_rows, num_experts)
