"""The sums over some positions of a context that a program makes, a step after the other.

A step is keys [positions, D] times queries [D, rows x heads]: positions fill the lines of wgmma, and the rows of a
sequence and the query heads of a KV head are its narrow side, so that eight of them cost an eighth of a padded tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_blocks(
    table: tl.tensor, start: tl.tensor, stop: tl.tensor, BLOCK_KV: tl.constexpr, BLOCK_SIZE: tl.constexpr
) -> tl.tensor:
    """The blocks of BLOCK_KV positions from `start` on, a multiple of BLOCK_KV or UNIT; any at `stop` and behind it."""
    index = tl.arange(0, BLOCK_KV)
    if BLOCK_KV % BLOCK_SIZE == 0:  # then a step begins with a block
        place = (table + start // BLOCK_SIZE) + index // BLOCK_SIZE
    else:
        place = table + (start + index) // BLOCK_SIZE
    return tl.load(place, mask=index < stop - start, other=0)


@triton.jit
def load_kv(
    cache: tl.tensor,
    block: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    kv_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TURNED: tl.constexpr = False,
) -> tl.tensor:
    """Keys or values at N positions from `start` on, [N, DIM_POW2] or TURNED [DIM_POW2, N]; zero behind `stop`."""
    index = tl.arange(0, block.shape[0])
    offset = index % BLOCK_SIZE if block.shape[0] % BLOCK_SIZE == 0 else (start + index) % BLOCK_SIZE
    line = block * (KV_HEADS * BLOCK_SIZE) + (kv_head * BLOCK_SIZE + offset)  # 2^31 of them would be half a terabyte
    is_read = index < stop - start
    channel = tl.arange(0, DIM_POW2)
    if TURNED:  # by how it is addressed: a turn of what was loaded would keep Triton 3.6 from loading it ahead
        place = (cache + channel[:, None]) + line[None, :].to(tl.int64) * DIM
        is_there = is_read[None, :] & (channel < DIM)[:, None]
    else:
        place = (cache + channel[None, :]) + line[:, None].to(tl.int64) * DIM
        is_there = is_read[:, None] & (channel < DIM)[None, :]
    return tl.load(place, mask=is_there, other=0.0)


@triton.jit
def load_words(
    cache: tl.tensor,
    block: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    kv_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> tl.tensor:
    """What `load_kv` loads of an FP8 cache, four channels a word: [N, DIM_POW2 / 4] int32.

    In a loop that carries a step's bytes to the next, Triton gives each byte a register and moves it into place as soon
    as the loop ends, which waits for the load: words stay as they come until they are needed.
    """
    words = cache.to(tl.pointer_type(tl.int32))
    return load_kv(words, block, start, stop, kv_head, KV_HEADS, DIM // 4, DIM_POW2 // 4, BLOCK_SIZE)


@triton.jit
def fp16_of_words(words: tl.tensor) -> tl.tensor:
    """The e4m3 of `load_words`, which fp16 has exactly: [N, 4 * W]."""
    first, second = words.to(tl.uint8), (words >> 8).to(tl.uint8)
    third, fourth = (words >> 16).to(tl.uint8), (words >> 24).to(tl.uint8)
    in_order = tl.join(tl.join(first, third), tl.join(second, fourth))  # the last axis is the lowest
    each = tl.reshape(in_order, (words.shape[0], 4 * words.shape[1]))
    return each.to(tl.float8e4nv, bitcast=True).to(tl.float16)


@triton.jit
def in_fp16(queries: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Queries [D, C] in fp16, and the unit [C] of each column: a power of two by which its largest is 2^14 to 2^15.

    So a bf16 value keeps its eight digits unless it is 2^-28 of that or less, and an fp32 one eleven.
    """
    exact = queries.to(tl.float32)
    exponent = tl.maximum(tl.max(tl.abs(exact), 0).to(tl.int32, bitcast=True) >> 23, 15)
    scaled = exact * ((268 - exponent) << 23).to(tl.float32, bitcast=True)[None, :]
    return scaled.to(tl.float16), ((exponent - 14) << 23).to(tl.float32, bitcast=True)


@triton.jit
def soften(
    scores: tl.tensor,
    own: tl.tensor,
    block_start: tl.tensor,
    stop: tl.tensor,
    window: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The weights [N, C] of a step's scores, by what it shrinks the sums of earlier steps, `best` and `total` after it.

    `total` [N, C] is of every N-th position: its lines are summed at the end, and not between threads at every step.
    """
    position = block_start + tl.arange(0, scores.shape[0])[:, None]
    distance = own[None, :] - position
    scores = tl.where((distance >= 0) & (distance < window) & (position < stop), scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 0))
    base = tl.where(new_best == float("-inf"), 0.0, new_best)
    weights = tl.exp2(scores - base[None, :])
    shrink = tl.exp2(best - base)[None, :]
    return weights, shrink, new_best, total * shrink + weights


@triton.jit
def plain_sums(
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
    """See `split_sums`."""
    COLUMNS: tl.constexpr = queries.shape[1]
    best = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_KV, COLUMNS), tl.float32)
    mean = tl.zeros((DIM_POW2, COLUMNS), tl.float32)
    block = load_blocks(table, start, stop, BLOCK_KV, BLOCK_SIZE)
    for block_start in range(start, stop, BLOCK_KV):
        # A step ahead, or every step would wait for two loads, one after the other.
        next_block = load_blocks(table, block_start + BLOCK_KV, stop, BLOCK_KV, BLOCK_SIZE)
        keys = load_kv(key, block, block_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        values = load_kv(value, block, block_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE, TURNED=True)
        scores = tl.dot(keys, queries, input_precision="ieee") * scale
        weights, shrink, best, total = soften(scores, own, block_start, stop, window, best, total)
        mean = tl.dot(values, weights.to(queries.dtype), mean * shrink, input_precision="ieee")
        block = next_block
    return best, tl.sum(total, 0), mean


@triton.jit
def fp8_sums(
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
    """`plain_sums` over an FP8 cache, without its scales.

    e4m3 is exact in fp16, not the other way round. A step's values become that first of all, out of their words, and
    the next step's are on their way ever since.
    """
    COLUMNS: tl.constexpr = queries.shape[1]
    best = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_KV, COLUMNS), tl.float32)
    mean = tl.zeros((DIM_POW2, COLUMNS), tl.float32)
    block = load_blocks(table, start, stop, BLOCK_KV, BLOCK_SIZE)
    words = load_words(value, block, start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
    scaled, unit = in_fp16(queries)
    unit *= scale
    for block_start in range(start, stop, BLOCK_KV):
        next_start = block_start + BLOCK_KV
        next_block = load_blocks(table, next_start, stop, BLOCK_KV, BLOCK_SIZE)
        keys = load_kv(key, block, block_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        values = tl.trans(fp16_of_words(words))
        words = load_words(value, next_block, next_start, stop, kv_head, KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE)
        scores = tl.dot(keys.to(tl.float16), scaled) * unit[None, :]
        weights, shrink, best, total = soften(scores, own, block_start, stop, window, best, total)
        mean = tl.dot(values, weights.to(tl.float16), mean * shrink)
        block = next_block
    return best, tl.sum(total, 0), mean


@triton.jit
def split_sums(
    queries: tl.tensor,
    own: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_scale: tl.tensor,
    value_scale: tl.tensor,
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
    FP8: tl.constexpr,
    BLOCK_KV: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Positions [start, stop) of one sequence for queries [DIM_POW2, C] at positions `own` [C].

    Returns the largest score [C], the sum of the weights 2^(score - largest) [C], and the values' sum [DIM_POW2, C].
    """
    if FP8:
        best, total, mean = fp8_sums(
            *(queries, own, key, value, table, kv_head, start, stop, scale * tl.load(key_scale + kv_head), window),
            *(KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE, BLOCK_KV),
        )
        mean *= tl.load(value_scale + kv_head)
    else:
        best, total, mean = plain_sums(
            *(queries, own, key, value, table, kv_head, start, stop, scale, window),
            *(KV_HEADS, DIM, DIM_POW2, BLOCK_SIZE, BLOCK_KV),
        )
    return best, total, mean
