"""Attention of decodes and verifies: a context is cut into splits that run side by side, and their sums are merged."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.paged_attention.results import merged, store_heads
from kernels.paged_attention.sums import split_sums


@triton.jit
def split_length(
    context: tl.tensor, share: tl.tensor, most: tl.tensor, long_log2: tl.tensor, UNIT: tl.constexpr
) -> tl.tensor:
    """Positions of each split of a context, a multiple of UNIT: by its own length, whatever the contexts beside it.

    See `tiles.Cut`, in units of UNIT.
    """
    units = tl.cdiv(context.to(tl.uint32), UNIT)
    longs = (units + ((1 << long_log2) >> 1)) >> long_log2
    number = tl.minimum(tl.maximum(longs, share.to(tl.uint32)), most.to(tl.uint32))
    return tl.cdiv(units, number).to(tl.int32) * UNIT


@launched
@triton.jit(do_not_specialize=["table_width", "splits", "share", "most", "long_log2"])
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
    out: tl.tensor,
    scales: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    table_width: tl.tensor,
    splits: tl.tensor,
    share: tl.tensor,
    most: tl.tensor,
    long_log2: tl.tensor,
    GROUP: tl.constexpr,
    GROUP_POW2: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    QUANTISED: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
) -> None:
    """One split of BLOCK_ROWS rows of one sequence and a KV head, for sequences of at most ROWS rows.

    partial [B, ROWS, A, splits, D] fp32 gets the softmax-weighted mean of the split's values, partial_log
    [B, ROWS, A, splits] the binary logarithm of the weights' sum, -inf where nothing is seen. A context that is
    one split has no need of them: its mean is the result.
    """
    await_previous()
    COLUMNS: tl.constexpr = max(8, BLOCK_ROWS * GROUP_POW2)  # the narrowest that wgmma has
    TILES: tl.constexpr = ROWS // BLOCK_ROWS  # of a sequence, side by side: they find what each other read in L2
    sequence, kv_head, split = tl.program_id(0) // TILES, tl.program_id(1), tl.program_id(2)
    first = tl.program_id(0) % TILES * BLOCK_ROWS
    first_row = tl.load(row_starts + sequence)
    num_rows = tl.load(row_starts + sequence + 1) - first_row
    context = tl.load(context_lens + sequence)
    length = split_length(context, share, most, long_log2, UNIT)
    if (num_rows > ROWS) | (first >= num_rows) | (split * length >= context):
        return
    column = tl.arange(0, COLUMNS)
    row, group_head = first + column // GROUP_POW2, column % GROUP_POW2
    exists = (row < num_rows) & (group_head < GROUP)
    head = kv_head * GROUP + group_head
    channel = tl.arange(0, DIM_POW2)[:, None]
    at = (first_row + row) * (KV_HEADS * GROUP) + head
    queries = tl.load(
        query + at[None, :].to(tl.int64) * DIM + channel, mask=exists[None, :] & (channel < DIM), other=0.0
    )
    own = tl.load(positions + first_row + row, mask=row < num_rows, other=0)
    table = block_tables + sequence.to(tl.int64) * table_width
    start = split * length
    if window < context:  # otherwise the first loads need not wait for the positions
        oldest = tl.min(tl.where(row < num_rows, own, 2147483647), 0) - window + 1
        start = tl.maximum(start, tl.maximum(oldest, 0) // BLOCK_KV * BLOCK_KV)
    stop = tl.minimum(split * length + length, context)
    best, total, mean = split_sums(
        queries,
        own,
        key,
        value,
        key_scale,
        value_scale,
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
        FP8=FP8,
        BLOCK_KV=BLOCK_KV,
    )
    some = tl.where(total == 0.0, 1.0, total)
    mean = mean / some[None, :]
    if length >= context:  # nothing to merge
        store_heads(out, scales, at.to(tl.int64), tl.trans(mean), exists, query, DIM, DIM_POW2, QUANTISED)
    else:
        place = ((sequence * ROWS + row) * (KV_HEADS * GROUP) + head).to(tl.int64) * splits + split
        tl.store(partial + place[None, :] * DIM + channel, mean, mask=exists[None, :] & (channel < DIM))
        tl.store(partial_log + place, best + tl.log2(some), mask=exists)  # best is -inf where nothing is seen


@launched
@triton.jit(do_not_specialize=["splits", "share", "most", "long_log2"])
def merge_kernel(
    query: tl.tensor,
    partial: tl.tensor,
    partial_log: tl.tensor,
    row_starts: tl.tensor,
    context_lens: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    splits: tl.tensor,
    share: tl.tensor,
    most: tl.tensor,
    long_log2: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    QUANTISED: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """BLOCK_HEADS heads of one row of out [T, HEADS, DIM], unless `split_kernel` has written them already."""
    await_previous()
    sequence, row = tl.program_id(0) // BLOCK_ROWS, tl.program_id(0) % BLOCK_ROWS
    first_row = tl.load(row_starts + sequence)
    num_rows = tl.load(row_starts + sequence + 1) - first_row
    context = tl.load(context_lens + sequence)
    length = split_length(context, share, most, long_log2, UNIT)
    if (num_rows > BLOCK_ROWS) | (row >= num_rows) | (length >= context):
        return
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    first = (tl.program_id(0).to(tl.int64) * HEADS + head) * splits
    mean = merged(partial, partial_log, first, head < HEADS, context, length, DIM, DIM_POW2, AT_ONCE)
    at = (first_row + row).to(tl.int64) * HEADS + head
    store_heads(out, scales, at, mean, head < HEADS, query, DIM, DIM_POW2, QUANTISED)
