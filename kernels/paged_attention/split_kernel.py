"""Attention of decodes and verifies: a context is cut into splits that run side by side, and their sums are merged.

A step is keys [positions, D] times queries [D, rows x heads]: positions fill the lines of wgmma, and the rows of a
sequence and the query heads of a KV head are its narrow side, so that eight of them cost an eighth of a padded tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launched import launched
from kernels.overlap import await_previous


@triton.jit
def split_length(context: tl.tensor, most_splits: tl.tensor, SMALLEST: tl.constexpr) -> tl.tensor:
    """Positions of each split of a context, cut by its own length, whatever the contexts beside it."""
    return tl.cdiv(tl.maximum(context, 1), most_splits * SMALLEST) * SMALLEST


@triton.jit
def load_kv(
    cache: tl.tensor,
    block_table: tl.tensor,
    position: tl.tensor,
    is_read: tl.tensor,
    kv_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> tl.tensor:
    """Keys or values at `position` [N] of one sequence, [N, DIM_POW2]; zero where not `is_read`."""
    channel = tl.arange(0, DIM_POW2)[None, :]
    block = tl.load(block_table + position // BLOCK_SIZE, mask=is_read, other=0).to(tl.int64)
    line = (block * KV_HEADS + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE
    return tl.load(cache + line[:, None] * DIM + channel, mask=is_read[:, None] & (channel < DIM), other=0.0)


@triton.jit
def split_sums(
    queries: tl.tensor,
    own: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    table: tl.tensor,
    kv_head: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_KV: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Positions [start, stop) of one sequence for queries [DIM_POW2, C] at positions `own` [C].

    Returns the largest score [C], the sum of the weights 2^(score - largest) [C], and the values' sum [DIM_POW2, C].
    """
    COLUMNS: tl.constexpr = queries.shape[1]
    best = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    mean = tl.zeros((DIM_POW2, COLUMNS), tl.float32)
    for block_start in range(start, stop, BLOCK_KV):
        position = block_start + tl.arange(0, BLOCK_KV)
        is_read = position < stop
        keys = load_kv(key, table, position, is_read, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        scores = tl.dot(keys.to(queries.dtype), queries, input_precision="ieee") * scale
        distance = own[None, :] - position[:, None]
        scores = tl.where((distance >= 0) & (distance < window) & is_read[:, None], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 0))
        base = tl.where(new_best == float("-inf"), 0.0, new_best)
        weights = tl.exp2(scores - base[None, :])
        shrink = tl.exp2(best - base)
        total = total * shrink + tl.sum(weights, 0)
        values = load_kv(value, table, position, is_read, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        values = tl.trans(values.to(queries.dtype))
        mean = tl.dot(values, weights.to(queries.dtype), mean * shrink[None, :], input_precision="ieee")
        best = new_best
    return best, total, mean


@launched
@triton.jit(do_not_specialize=["table_width", "splits", "most_splits"])
def split_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_scale: tl.tensor,
    value_scale: tl.tensor,
    block_tables: tl.tensor,
    row_starts: tl.tensor,
    context_lens: tl.tensor,
    positions: tl.tensor,
    partial: tl.tensor,
    partial_log: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    table_width: tl.tensor,
    splits: tl.tensor,
    most_splits: tl.tensor,
    GROUP: tl.constexpr,
    GROUP_POW2: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    SMALLEST_SPLIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
) -> None:
    """One split of one sequence and KV head, for sequences of at most BLOCK_ROWS rows.

    partial [B, BLOCK_ROWS, A, splits, D] fp32 gets the softmax-weighted mean of the split's values, partial_log
    [B, BLOCK_ROWS, A, splits] the binary logarithm of the weights' sum, -inf where nothing is seen.
    """
    await_previous()
    COLUMNS: tl.constexpr = max(8, BLOCK_ROWS * GROUP_POW2)  # the narrowest that wgmma has
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(row_starts + sequence)
    num_rows = tl.load(row_starts + sequence + 1) - first_row
    context = tl.load(context_lens + sequence)
    length = split_length(context, most_splits, SMALLEST_SPLIT)
    if (num_rows > BLOCK_ROWS) | (split * length >= context):
        return
    column = tl.arange(0, COLUMNS)
    row, group_head = column // GROUP_POW2, column % GROUP_POW2
    exists = (row < num_rows) & (group_head < GROUP)
    head = kv_head * GROUP + group_head
    channel = tl.arange(0, DIM_POW2)[:, None]
    at = (first_row + row).to(tl.int64) * (KV_HEADS * GROUP) + head
    queries = tl.load(query + at[None, :] * DIM + channel, mask=exists[None, :] & (channel < DIM), other=0.0)
    own = tl.load(positions + first_row + row, mask=row < num_rows, other=0)
    if FP8:  # e4m3 is exact in fp16, not the other way round
        queries = queries.to(tl.float16)
        scale = scale * tl.load(key_scale + kv_head)
    table = block_tables + sequence.to(tl.int64) * table_width
    oldest = tl.min(tl.where(row < num_rows, own, 2147483647), 0) - window + 1
    start = tl.maximum(split * length, tl.maximum(oldest, 0) // BLOCK_KV * BLOCK_KV)
    stop = tl.minimum(split * length + length, context)
    best, total, mean = split_sums(
        queries,
        own,
        key,
        value,
        table,
        kv_head,
        start,
        stop,
        scale * 1.4426950408889634,  # powers of two are what the hardware has
        window,
        KV_HEADS=KV_HEADS,
        DIM=DIM,
        DIM_POW2=DIM_POW2,
        BLOCK_SIZE=BLOCK_SIZE,
        BLOCK_KV=BLOCK_KV,
    )
    if FP8:
        mean = mean * tl.load(value_scale + kv_head)
    place = ((sequence * BLOCK_ROWS + row).to(tl.int64) * (KV_HEADS * GROUP) + head) * splits + split
    is_stored = exists[None, :] & (channel < DIM)
    some = tl.where(total == 0.0, 1.0, total)
    tl.store(partial + place[None, :] * DIM + channel, mean / some[None, :], mask=is_stored)
    log = best + tl.log2(some)  # best is -inf where nothing is seen
    tl.store(partial_log + place, log, mask=exists)


@launched
@triton.jit(do_not_specialize=["splits", "most_splits"])
def merge_kernel(
    partial: tl.tensor,
    partial_log: tl.tensor,
    row_starts: tl.tensor,
    context_lens: tl.tensor,
    out: tl.tensor,
    splits: tl.tensor,
    most_splits: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SMALLEST_SPLIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """One head of one row of out [T, HEADS, DIM]: the mean of its splits' means, weighed by their sums."""
    await_previous()
    sequence, row = tl.program_id(0) // BLOCK_ROWS, tl.program_id(0) % BLOCK_ROWS
    head = tl.program_id(1)
    first_row = tl.load(row_starts + sequence)
    num_rows = tl.load(row_starts + sequence + 1) - first_row
    if (num_rows > BLOCK_ROWS) | (row >= num_rows):
        return
    context = tl.load(context_lens + sequence)
    used = tl.cdiv(context, split_length(context, most_splits, SMALLEST_SPLIT))
    split = tl.arange(0, MAX_SPLITS)
    channel = tl.arange(0, DIM_POW2)[None, :]
    place = (tl.program_id(0).to(tl.int64) * HEADS + head) * splits + split
    log = tl.load(partial_log + place, mask=split < used, other=float("-inf"))
    weights = tl.exp2(log - tl.max(log, 0))
    is_seen = (log != float("-inf"))[:, None] & (channel < DIM)  # what is not seen may never have been written
    means = tl.load(partial + place[:, None] * DIM + channel, mask=is_seen, other=0.0)
    total = tl.sum(weights[:, None] * means, 0) / tl.sum(weights, 0)
    at = out + ((first_row + row).to(tl.int64) * HEADS + head) * DIM + tl.arange(0, DIM_POW2)
    tl.store(at, total.to(out.dtype.element_ty), mask=tl.arange(0, DIM_POW2) < DIM)
