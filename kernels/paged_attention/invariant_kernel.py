"""Attention whose sums follow from a row's position alone: tiles of one size, splits at the same places for all.

Decodes, verifies and chunks are cut alike, into BLOCK_ROWS rows of a sequence and SPLIT positions of its context, so
the row that a chunk computes has the bits of the one that a decode computes. What a row must not see adds nothing to
its sums, bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.paged_attention.chunk_kernel import find_rows
from kernels.paged_attention.results import merged, store_heads
from kernels.paged_attention.sums import split_sums


@launched
@triton.jit(do_not_specialize=["table_width", "num_sequences", "first_tile", "splits"])
def tile_split_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_scale: tl.tensor,
    value_scale: tl.tensor,
    block_tables: tl.tensor,
    row_starts: tl.tensor,
    positions: tl.tensor,
    partial: tl.tensor,
    partial_log: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    table_width: tl.tensor,
    num_sequences: tl.tensor,
    first_tile: tl.tensor,
    splits: tl.tensor,
    GROUP: tl.constexpr,
    GROUP_POW2: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
) -> None:
    """One split of one tile of rows and one KV head.

    partial [tiles, BLOCK_ROWS, A, splits, D] fp32 gets the softmax-weighted mean of the split's values, partial_log
    [tiles, BLOCK_ROWS, A, splits] the binary logarithm of the weights' sum, -inf where nothing is seen. Splits that lie
    past the tile's rows are not written.
    """
    await_previous()
    COLUMNS: tl.constexpr = max(8, BLOCK_ROWS * GROUP_POW2)  # the narrowest that wgmma has
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, first = find_rows(first_tile + tile, row_starts, num_sequences, 0, BLOCK_ROWS)
    if sequence < 0:
        return
    first_row = tl.load(row_starts + sequence) + first
    num_rows = tl.minimum(tl.load(row_starts + sequence + 1) - first_row, BLOCK_ROWS)
    newest = tl.load(positions + first_row + num_rows - 1)
    if split * SPLIT > newest:
        return
    column = tl.arange(0, COLUMNS)
    row, group_head = column // GROUP_POW2, column % GROUP_POW2
    exists = (row < num_rows) & (group_head < GROUP)
    head = kv_head * GROUP + group_head
    channel = tl.arange(0, DIM_POW2)[:, None]
    at = (first_row + row).to(tl.int64) * (KV_HEADS * GROUP) + head
    queries = tl.load(query + at[None, :] * DIM + channel, mask=exists[None, :] & (channel < DIM), other=0.0)
    own = tl.load(positions + first_row + row, mask=row < num_rows, other=0)
    oldest = tl.min(tl.where(row < num_rows, own, 2147483647), 0) - window + 1
    start = tl.maximum(split * SPLIT, tl.maximum(oldest, 0) // BLOCK_KV * BLOCK_KV)
    stop = tl.minimum(split * SPLIT + SPLIT, newest + 1)
    best, total, mean = split_sums(
        queries,
        own,
        key,
        value,
        key_scale,
        value_scale,
        block_tables + sequence.to(tl.int64) * table_width,
        kv_head,
        start,
        stop,
        scale * 1.4426950408889634,  # powers of two are what the hardware has
        window,
        KV_HEADS=KV_HEADS,
        DIM=DIM,
        DIM_POW2=DIM_POW2,
        BLOCK_SIZE=BLOCK_SIZE,
        FP8=FP8,
        BLOCK_KV=BLOCK_KV,
    )
    place = ((tile * BLOCK_ROWS + row).to(tl.int64) * (KV_HEADS * GROUP) + head) * splits + split
    some = tl.where(total == 0.0, 1.0, total)
    tl.store(partial + place[None, :] * DIM + channel, mean / some[None, :], mask=exists[None, :] & (channel < DIM))
    tl.store(partial_log + place, best + tl.log2(some), mask=exists)  # best is -inf where nothing is seen


@launched
@triton.jit(do_not_specialize=["num_sequences", "first_tile", "splits"])
def merge_tiles_kernel(
    query: tl.tensor,
    partial: tl.tensor,
    partial_log: tl.tensor,
    row_starts: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    num_sequences: tl.tensor,
    first_tile: tl.tensor,
    splits: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    QUANTISED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """BLOCK_HEADS heads of one row of out [T, HEADS, DIM]."""
    await_previous()
    tile, row = tl.program_id(0) // BLOCK_ROWS, tl.program_id(0) % BLOCK_ROWS
    sequence, first = find_rows(first_tile + tile, row_starts, num_sequences, 0, BLOCK_ROWS)
    if sequence < 0:
        return
    at = tl.load(row_starts + sequence) + first + row
    if at >= tl.load(row_starts + sequence + 1):
        return
    context = tl.load(positions + at) + 1
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    first_place = (tl.program_id(0).to(tl.int64) * HEADS + head) * splits
    mean = merged(partial, partial_log, first_place, head < HEADS, context, SPLIT, DIM, DIM_POW2, AT_ONCE)
    store_heads(out, scales, at.to(tl.int64) * HEADS + head, mean, head < HEADS, query, DIM, DIM_POW2, QUANTISED)
