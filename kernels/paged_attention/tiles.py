"""How attention is cut into programs. Pure, so that it can be tested and every choice compiled in advance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kernels.launch import launch_options

MAX_VERIFY_ROWS = 8  # a sequence with more rows than this is a chunk
MAX_SPLITS = 64  # of a context: with four KV heads 256 programs for one sequence, two a multiprocessor of an H200
MAX_SPLIT_PROGRAMS = 4096  # of a batch: one that finds no work leaves at once, but thousands of them take their time
SCRATCH_BYTES = 256 * 2**20  # of the splits' sums; 32 sequences of one row and 32 heads of 128 take 16.9 MB
SPLIT_UNIT = 64  # a split is so many positions or a multiple: one step
MAX_TILE_ROWS = 4  # of a program: of eight a multiprocessor would hold one program, and two of four do less work
MAX_SMALLEST_SPLIT = 512  # positions, where there are programs enough: fewer sums to write
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


@cache
def sums_weight(rows: int, cache_itemsize: int) -> int:
    """How much a split's sums weigh beside the keys and values that it reads, in those of one row over bf16."""
    return rows * 2 // min(cache_itemsize, 2)


@cache
def most_splits(num_programs: int, num_sums: int, head_dim: int, weight: int = 1) -> int:
    """Into how many splits a context may be cut, a power of two.

    `num_programs`: without splits, sequences times KV heads. `num_sums`: sequences times rows times heads, each of
    which has a sum of `head_dim` values in every split. `weight`: of those sums.
    """
    fitting = max(1, SCRATCH_BYTES // (max(num_sums, 1) * (head_dim + 1) * 4))
    useful = max(4, MAX_SPLIT_PROGRAMS // (max(num_programs, 1) * weight))
    return min(MAX_SPLITS, 1 << (min(fitting, useful).bit_length() - 1))


@cache
def smallest_split(num_programs: int, weight: int = 1) -> int:
    """Positions under which a split is not worth its sums: one step while the device is not full without."""
    programs = num_programs * min(weight, 2)
    return min(MAX_SMALLEST_SPLIT, max(SPLIT_UNIT, 1 << (2 * programs - 1).bit_length()))


def tiles_at_once(num_sums: int, head_dim: int) -> int:
    """Tiles of `num_sums` rows times heads times splits that the scratch memory holds; one always."""
    return max(1, SCRATCH_BYTES // (num_sums * (head_dim + 1) * 4))


@cache
def num_splits(max_context: int, most: int, smallest: int) -> int:
    """Programs that share the longest context."""
    return min(most, max(1, -(-max_context // smallest)))


@cache
def merge_tile(num_sums: int) -> MergeTile:
    """How the splits of so many sums are merged: of few, each has a program, which reads all splits at once."""
    if num_sums <= FEW_SUMS:
        return MergeTile(block_heads=1, at_once=MAX_SPLITS, num_warps=8)
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
