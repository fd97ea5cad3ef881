"""Attention of prefill chunks: a program takes some rows of a sequence with all query heads of a KV head.

The heads of a group share the keys and values that the program reads. Positions that every row sees are walked without
a mask; those at the diagonal, and at the edge of a window, with one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.paged_attention.results import store_heads
from kernels.paged_attention.sums import load_blocks, load_kv


@triton.jit
def find_rows(
    tile: tl.tensor,
    row_starts: tl.tensor,
    num_sequences: tl.tensor,
    MORE_THAN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The sequence of tile number `tile`, -1 past the last, and the tile's first row within it.

    Sequences of more than MORE_THAN rows are cut into tiles of BLOCK_ROWS, in order.
    """
    sequence, first, before = -1, 0, 0
    for base in range(0, num_sequences, 128):
        index = base + tl.arange(0, 128)
        is_one = index < num_sequences
        start = tl.load(row_starts + index, mask=is_one, other=0)
        rows = tl.load(row_starts + index + 1, mask=is_one, other=0) - start
        tiles = tl.where(rows > MORE_THAN, (rows + BLOCK_ROWS - 1) // BLOCK_ROWS, 0)
        end = before + tl.cumsum(tiles, 0)
        is_here = (tile < end) & (tile >= end - tiles)
        sequence += tl.sum(tl.where(is_here, index + 1, 0), 0)
        first += tl.sum(tl.where(is_here, (tile - end + tiles) * BLOCK_ROWS, 0), 0)
        before += tl.sum(tiles, 0)
    return sequence, first


@triton.jit
def step(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    is_seen: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The running maximum, sum of weights and weighted sum of values, after one step's positions."""
    scores = tl.dot(queries, tl.trans(keys.to(queries.dtype)), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(is_seen, scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    base = tl.where(new_best == float("-inf"), 0.0, new_best) if MASKED else new_best
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, 1)
    mean = mean * shrink[:, None]
    mean = tl.dot(weights.to(queries.dtype), values.to(queries.dtype), mean, input_precision="ieee")
    return new_best, total, mean


@launched
@triton.jit(do_not_specialize=["table_width", "num_sequences"])
def chunk_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_scale: tl.tensor,
    value_scale: tl.tensor,
    block_tables: tl.tensor,
    row_starts: tl.tensor,
    context_lens: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    table_width: tl.tensor,
    num_sequences: tl.tensor,
    GROUP: tl.constexpr,
    GROUP_POW2: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    QUANTISED: tl.constexpr,
    MORE_THAN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
) -> None:
    """BLOCK_ROWS rows of one sequence with more than MORE_THAN, all query heads of one KV head; out [T, A, DIM]."""
    await_previous()
    LINES: tl.constexpr = BLOCK_ROWS * GROUP_POW2
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last rows have the longest way and start first
    kv_head = tl.program_id(1)
    sequence, first = find_rows(tile, row_starts, num_sequences, MORE_THAN, BLOCK_ROWS)
    if sequence < 0:
        return
    first_row = tl.load(row_starts + sequence) + first
    num_rows = tl.load(row_starts + sequence + 1) - first_row
    context = tl.load(context_lens + sequence)
    line = tl.arange(0, LINES)
    row, group_head = line // GROUP_POW2, line % GROUP_POW2
    exists = (row < num_rows) & (group_head < GROUP)
    channel = tl.arange(0, DIM_POW2)[None, :]
    at = (first_row + row).to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + group_head
    queries = tl.load(query + at[:, None] * DIM + channel, mask=exists[:, None] & (channel < DIM), other=0.0)
    last = tl.minimum(row, num_rows - 1)
    own = tl.load(positions + first_row + last)
    if FP8:  # e4m3 is exact in fp16, not the other way round
        queries = queries.to(tl.float16)
        scale = scale * tl.load(key_scale + kv_head)
    scale = scale * 1.4426950408889634  # powers of two are what the hardware has

    best = tl.full((LINES,), float("-inf"), tl.float32)
    total = tl.zeros((LINES,), tl.float32)
    mean = tl.zeros((LINES, DIM_POW2), tl.float32)
    table = block_tables + sequence.to(tl.int64) * table_width
    # [start, full) edge of the window   [full, diagonal) seen by every row   [diagonal, stop) some rows see
    newest, oldest = tl.max(own, 0), tl.min(own, 0)
    stop = tl.minimum(newest + 1, context)
    start = tl.maximum(oldest - window + 1, 0) // BLOCK_KV * BLOCK_KV
    diagonal = (oldest + 1) // BLOCK_KV * BLOCK_KV
    full = tl.minimum(tl.cdiv(tl.maximum(newest - window + 1, 0), BLOCK_KV) * BLOCK_KV, diagonal)
    full = tl.maximum(full, start)
    diagonal = tl.maximum(diagonal, full)
    for block_start in range(full, diagonal, BLOCK_KV):
        position = block_start + tl.arange(0, BLOCK_KV)
        is_read = position < stop
        block = load_blocks(table, block_start, stop, BLOCK_KV, BLOCK_SIZE)
        keys = load_kv(key, block, block_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        values = load_kv(value, block, block_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        best, total, mean = step(queries, keys, values, is_read, best, total, mean, scale, False)
    num_low = (full - start) // BLOCK_KV
    for index in range(0, num_low + tl.cdiv(stop - diagonal, BLOCK_KV)):
        block_start = tl.where(index < num_low, start, diagonal - num_low * BLOCK_KV) + index * BLOCK_KV
        position = block_start + tl.arange(0, BLOCK_KV)
        is_read = position < stop
        block = load_blocks(table, block_start, stop, BLOCK_KV, BLOCK_SIZE)
        keys = load_kv(key, block, block_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        values = load_kv(value, block, block_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        distance = own[:, None] - position[None, :]
        is_seen = (distance >= 0) & (distance < window) & is_read[None, :]
        best, total, mean = step(queries, keys, values, is_seen, best, total, mean, scale, True)
    if FP8:
        mean = mean * tl.load(value_scale + kv_head)
    store_heads(out, scales, at, mean / total[:, None], exists, query, DIM, DIM_POW2, QUANTISED)
