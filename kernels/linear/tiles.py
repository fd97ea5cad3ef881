"""How large the tiles of a matrix kernel are. Pure, so that it can be tested and every choice compiled in advance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kernels.launch import launch_options

TARGET_PROGRAMS = 132  # an H100 has 132 multiprocessors, an H20 78
MAX_NARROW_ROWS = 32
SPLIT_PROGRAMS = 3 * TARGET_PROGRAMS  # three a multiprocessor: while one waits for memory or a sum, two read
SPLIT_SHARED_BYTES = 75 * 1024  # of a multiprocessor's shared memory, what each of three programs may have
INVARIANT_ROWS = 32  # by which batch-invariant tiles are chosen: with them a decode still waits for memory on an H20
HALF_SHARED_BYTES = 113 * 1024  # of a multiprocessor's shared memory, what each of two programs may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One tile of outputs: BLOCK_ROWS rows by BLOCK_OUT outputs, walked in steps of BLOCK_IN channels."""

    block_rows: int
    block_out: int
    block_in: int
    num_warps: int
    num_stages: int

    @property
    def rows_left(self) -> bool:
        """Whether rows fill the 64 lines of wgmma; few rows are its narrow side instead."""
        return self.block_rows > MAX_NARROW_ROWS

    @property
    def options(self) -> dict[str, int | bool]:
        """How a kernel is launched."""
        return launch_options(self.num_warps, self.num_stages)

    def constants(self) -> dict[str, int | bool]:
        """What a kernel is compiled with."""
        return {
            "ROWS_LEFT": self.rows_left,
            "BLOCK_OUT": self.block_out,
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_IN": self.block_in,
        }


def padded_rows(num_rows: int) -> int:
    """Rows of a tile that holds so few rows: 16, 32, 64 or, past that, 128."""
    return min(128, max(16, 1 << (num_rows - 1).bit_length())) if num_rows else 16


def steps_in_flight(rows: int, outs: int, step_bytes: int) -> int:
    """Stages of a decode: three to five of each of two programs that share a multiprocessor, else four of one."""
    stage_bytes = (rows + outs) * step_bytes
    shared = HALF_SHARED_BYTES // stage_bytes
    return min(5, shared) if shared >= 3 else 4


@cache
def linear_tile(num_rows: int, num_out: int, itemsize: int) -> Tile:
    """The tile of a product of `num_rows` rows with a weight of `num_out` outputs, elements of `itemsize` bytes.

    Decode (64 rows at most): 64 outputs a program, so that 4096 of them spread over 64 programs; from 16,896 outputs
    on 128. Prefill: 128 x 128 where that fills the device, else 128 x 64.
    """
    rows = padded_rows(num_rows)
    if itemsize == 4:  # fp32 has no tensor core path that keeps its precision
        return Tile(block_rows=min(rows, 64), block_out=64, block_in=32, num_warps=4, num_stages=3)
    if rows <= 64:
        out = 128 if num_out >= 128 * TARGET_PROGRAMS else 64
        num_stages = steps_in_flight(rows, out, 128 * itemsize)
        return Tile(block_rows=rows, block_out=out, block_in=128, num_warps=4, num_stages=num_stages)
    fills = -(-num_rows // 128) * -(-num_out // 128) >= TARGET_PROGRAMS
    block_in = 128 // itemsize
    if fills:
        return Tile(block_rows=128, block_out=128, block_in=block_in, num_warps=8, num_stages=4)
    return Tile(block_rows=128, block_out=64, block_in=block_in, num_warps=4, num_stages=4)


@cache
def num_splits(num_rows: int, num_out: int, num_in: int, itemsize: int) -> int:
    """In how many parts K is summed by programs of their own: in one unless a decode's tiles leave the device idle.

    A power of two, so that three programs of each multiprocessor begin at once, with four steps of 128 at least.
    """
    num_steps, rest = divmod(num_in, 128)
    most = min(SPLIT_PROGRAMS // -(-num_out // 64), num_steps // 4)
    if num_rows > 64 or itemsize == 4 or rest or most < 2:
        return 1
    return max(splits for splits in (1, 2, 4, 8, 16) if splits <= most and num_steps % splits == 0)


@cache
def split_tile(num_rows: int, itemsize: int) -> Tile:
    """The tile of a product whose K is split: 64 outputs."""
    rows = padded_rows(num_rows)
    num_stages = min(6, max(3, SPLIT_SHARED_BYTES // ((rows + 64) * 128 * itemsize)))
    return Tile(block_rows=rows, block_out=64, block_in=128, num_warps=4, num_stages=num_stages)
