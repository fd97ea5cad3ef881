"""How attention is cut into programs. Pure, so that it can be tested and every choice compiled in advance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from kernels.launch import launch_options

MAX_VERIFY_ROWS = 8  # a sequence with more rows than this is a chunk
FILLING = 2  # programs a multiprocessor: as many find room whatever they hold, and read about as fast as more do
FILLING_FP8 = 4  # of one row over an FP8 cache, which are smaller
MAX_SPLITS = 32  # of a context for each of these: with four KV heads and one sequence, an H200 has no room for more
MAX_SPLIT_PROGRAMS = 4096  # of a batch: one that finds no work leaves at once, but thousands of them take their time
SCRATCH_BYTES = 256 * 2**20  # of the splits' sums; 32 sequences of one row and 32 heads of 128 take 16.9 MB
SPLIT_UNIT = 64  # a split is so many positions or a multiple: one step
MAX_TILE_ROWS = 4  # of a program: of eight a multiprocessor would hold one program, and two of four do less work
LONG_LOG2 = 4  # units of a split that is long enough: 1,024 positions
FEW_AT_ONCE = 64  # splits that are merged at once where there are few sums
FEW_SUMS = 256  # of rows times heads: up to here programs that merge one each do not wait for one another
INVARIANT_ROWS = 4  # of every tile of batch-invariant attention: a verification's; with eight heads each 32 columns
INVARIANT_SPLIT = 512  # positions of its splits: smaller ones make more sums to write, larger ones idle processors


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTile:
    """A program's rows times heads, and the positions that it takes at a step."""

    block_rows: int  # rows
    block_kv: int  # positions
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        """How a kernel is launched."""
        return launch_options(self.num_warps, self.num_stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTile:
    """Heads of a row that a program merges, and the splits of each that it takes at a step."""

    block_heads: int
    at_once: int
    num_warps: int

    @property
    def options(self) -> dict[str, int | bool]:
        """How a kernel is launched."""
        return launch_options(self.num_warps)


INVARIANT_MERGE = MergeTile(block_heads=4, at_once=8, num_warps=4)  # of every tile of batch-invariant attention


def most_rows(num_rows: int, num_sequences: int) -> int:
    """The most rows that one of B sequences may have where each has one: T - B + 1."""
    return max(1, num_rows - num_sequences + 1)


def verify_rows(most: int) -> int:
    """The most rows that a sequence of at most MAX_VERIFY_ROWS may have, as a power of two, where none has more."""
    return 1 << (min(MAX_VERIFY_ROWS, most) - 1).bit_length()


def has_chunks(most: int) -> bool:
    """Whether some sequence may have more than MAX_VERIFY_ROWS rows."""
    return most > MAX_VERIFY_ROWS


class Cut(NamedTuple):
    """Into how many splits the contexts of a batch are cut, each by its own length; what the kernels take, in order.

    Into as many as long ones fit in, to the nearest number, so that none is cut for a few positions; but into at least
    `share`, down to a unit each, since fewer would leave the device idle, and at most `most`.
    """

    share: int
    most: int
    long_log2: int  # units of a long split

    def num_splits(self, max_context: int) -> int:
        """Programs that share the longest context."""
        units = -(-max_context // SPLIT_UNIT)
        longs = (units + (1 << self.long_log2 >> 1)) >> self.long_log2
        return max(1, min(units, self.most, max(longs, self.share)))


@cache
def cut(num_programs: int, num_sums: int, head_dim: int, rows: int, cache_itemsize: int, multiprocessors: int) -> Cut:
    """How contexts are cut where each sequence has up to `rows` rows.

    `num_programs`: without splits, sequences times KV heads. `num_sums`: sequences times rows times heads, each of
    which has a sum of `head_dim` values in every split. Sums of several rows weigh more beside what a split reads, so
    such splits are longer.
    """
    filling = FILLING_FP8 if cache_itemsize == 1 and rows == 1 else FILLING
    fitting = max(1, SCRATCH_BYTES // (max(num_sums, 1) * (head_dim + 1) * 4))
    useful = max(4, MAX_SPLIT_PROGRAMS // max(num_programs, 1))
    most = min(fitting, useful, MAX_SPLITS * filling)
    share = min(most, max(1, filling * multiprocessors // max(num_programs, 1)))
    return Cut(share=share, most=most, long_log2=LONG_LOG2 + (rows > 1))


def tiles_at_once(num_sums: int, head_dim: int) -> int:
    """Tiles of `num_sums` rows times heads times splits that the scratch memory holds; one always."""
    return max(1, SCRATCH_BYTES // (num_sums * (head_dim + 1) * 4))


@cache
def merge_tile(num_sums: int) -> MergeTile:
    """How the splits of so many sums are merged: of few, each has a program, which reads all splits at once."""
    if num_sums <= FEW_SUMS:
        return MergeTile(block_heads=1, at_once=FEW_AT_ONCE, num_warps=8)
    return MergeTile(block_heads=4, at_once=8, num_warps=4)


@cache
def split_tile(rows: int, group: int, cache_itemsize: int) -> AttentionTile:
    """The tile of a decode or verify of `rows` rows, a power of two, of `group` query heads a KV head.

    Positions fill the 64 lines of wgmma, rows times heads are its narrow side.
    """
    block_rows = min(rows, MAX_TILE_ROWS)
    if cache_itemsize == 4:  # no tensor cores: small enough not to spill
        return AttentionTile(block_rows=block_rows, block_kv=32, num_warps=4, num_stages=2)
    num_warps = 8 if block_rows * group > 32 else 4
    return AttentionTile(block_rows=block_rows, block_kv=SPLIT_UNIT, num_warps=num_warps, num_stages=3)


@cache
def chunk_tile(group: int, itemsize: int) -> AttentionTile:
    """The tile of a prefill chunk: 128 rows times heads, so that the heads of a group share what is read.

    64 positions a step: 128 would spill.
    """
    lines = 32 if itemsize == 4 else 128
    rows = max(1, lines // (1 << (group - 1).bit_length()))
    if itemsize == 4:
        return AttentionTile(block_rows=rows, block_kv=32, num_warps=4, num_stages=2)
    return AttentionTile(block_rows=rows, block_kv=64, num_warps=8, num_stages=3)
