"""The first two stages: each block's best token; all masses, and how far below the best a row must be looked at.

After them a greedy row is done, and so is one that no rank limits. For another a histogram over the distance tells a
bound behind which neither top-k nor top-p can reach: of what lies farther the mass is at most what it would be at the
near ends of its bins. Counts and the sum of all masses are enough for that, and exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.arrivals import is_last
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.sample.masses import (
    BOUND,
    FEW,
    MANY,
    PART_BITS,
    ROAD,
    WEIGHED,
    block_tokens,
    inverse_heat,
    mass_of,
    part_of,
    row_limits,
    target_of,
)


@launched
@triton.jit(do_not_specialize=["blocks_each"])
def best_kernel(
    logits: tl.tensor,
    block_bests: tl.tensor,
    block_ids: tl.tensor,
    state: tl.tensor,
    histograms: tl.tensor,
    blocks_each: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BINS: tl.constexpr,
    STATE: tl.constexpr,
) -> None:
    """Blocks of one row of logits [R, VOCAB] -> the highest logit of each, NaN where there is one, and its lowest id.

    Grid (R, NUM_BLOCKS / blocks_each). state [R, STATE] and histograms [R, BINS] become 0.
    """
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * blocks_each
    if first == 0:
        tl.store(state + row * STATE + tl.arange(0, STATE), tl.zeros((STATE,), tl.int32))
        tl.store(histograms + row * BINS + tl.arange(0, BINS), tl.zeros((BINS,), tl.int32))
    for block in range(first, tl.minimum(first + blocks_each, NUM_BLOCKS)):
        ids, value = block_tokens(logits + row * VOCAB, block, VOCAB, BLOCK)
        is_nan = value != value
        best = tl.max(tl.where(is_nan, float("-inf"), value), 0)
        found = tl.min(tl.where(value == best, ids, VOCAB - 1), 0)
        best = tl.where(tl.max(is_nan.to(tl.int32), 0) > 0, float("nan"), best)
        tl.store(block_bests + row * NUM_BLOCKS + block, best)
        tl.store(block_ids + row * NUM_BLOCKS + block, found)


@triton.jit
def _draw_by_id(
    x: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    floor: tl.tensor,
    totals: tl.tensor,
    point: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The token at which the masses, summed in the order of ids, pass the point; totals are the blocks'."""
    target = target_of(point, tl.sum(totals, 0))
    is_before = tl.cumsum(totals, 0) <= target
    block = tl.sum(is_before.to(tl.int32), 0)
    ids, value = block_tokens(x, block, VOCAB, BLOCK)
    passed = tl.sum(tl.where(is_before, totals, 0), 0) + tl.cumsum(mass_of(value, best, inverse, floor), 0)
    return tl.min(tl.where(passed > target, ids, VOCAB - 1), 0)


@triton.jit
def _bound(
    counts: tl.tensor, total: tl.tensor, k: tl.tensor, p: tl.tensor, VOCAB: tl.constexpr, BINS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The nearest bin behind which nothing can be drawn, and how many tokens lie within it."""
    bins = tl.arange(0, BINS)
    within = tl.cumsum(counts, 0)
    # The thousandth covers how exp, the distance and its product were rounded. The last bin has no mass.
    heaviest = (tl.exp(bins.to(tl.float32) * (-28.5 / (BINS - 1))) * (1.001 * 1099511627776.0)).to(tl.int64) + 1
    weight = tl.where(bins < BINS - 1, counts.to(tl.int64) * heaviest, 0)
    behind = tl.sum(weight, 0) - tl.cumsum(weight, 0)
    nucleus = (p * total.to(tl.float64)).to(tl.int64) + 1
    is_enough = tl.where(k < VOCAB, within >= k, behind <= total - nucleus) | (bins >= BINS - 2)
    bound = tl.min(tl.where(is_enough, bins, BINS - 1), 0)
    return bound, tl.sum(tl.where(bins <= bound, counts, 0), 0)


@launched
@triton.jit(do_not_specialize=["blocks_each"])
def weigh_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    points: tl.tensor,
    block_bests: tl.tensor,
    block_ids: tl.tensor,
    block_totals: tl.tensor,
    histograms: tl.tensor,
    state: tl.tensor,
    parts: tl.tensor,
    part_counts: tl.tensor,
    part_masses: tl.tensor,
    bests: tl.tensor,
    token_ids: tl.tensor,
    blocks_each: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCKS_POW2: tl.constexpr,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    PART_TOKENS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    STATE: tl.constexpr,
) -> None:
    """Blocks of one row of logits [R, VOCAB] -> bests [R], token_ids [R] of all but ranked rows, totals of blocks.

    The last program of a ranked row says which road it takes. For the long one it divides each bin into parts of some
    PART_TOKENS tokens, parts [R, 2, BINS]: the first of each bin and their number; and clears their sums [R, PARTS].
    """
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * blocks_each
    all_blocks = tl.arange(0, BLOCKS_POW2)
    at = row * NUM_BLOCKS + all_blocks
    own_bests = tl.load(block_bests + at, mask=all_blocks < NUM_BLOCKS, other=float("-inf"))
    # All that a program needs is asked for at once, whether or not it will be used: a wait for memory is what counts.
    heat = tl.load(temperature + row)
    k, p, floor = row_limits(row, top_k, top_p, min_p, VOCAB)
    has_nan = tl.max((own_bests != own_bests).to(tl.int32), 0) > 0
    best = tl.max(tl.where(own_bests != own_bests, float("-inf"), own_bests), 0)
    if first == 0:
        tl.store(bests + row, tl.where(has_nan, float("nan"), best))
    is_drawn = (heat > 0.0) & (has_nan == 0) & (tl.abs(best) < float("inf"))
    if is_drawn == 0:
        if first == 0:
            own_ids = tl.load(block_ids + at, mask=all_blocks < NUM_BLOCKS, other=VOCAB - 1)
            greedy = tl.min(tl.where(own_bests == best, own_ids, VOCAB - 1), 0)
            tl.store(token_ids + row, greedy.to(tl.int64))
        return
    x = logits + row * VOCAB
    is_ranked = (k < VOCAB) | (p < 1.0)
    inverse = inverse_heat(heat)
    kept_from = tl.where(is_ranked, 0.0, floor)
    found = tl.zeros((BINS,), tl.int32)
    for block in range(first, tl.minimum(first + blocks_each, NUM_BLOCKS)):
        _, value = block_tokens(x, block, VOCAB, BLOCK)
        tl.store(block_totals + row * NUM_BLOCKS + block, tl.sum(mass_of(value, best, inverse, kept_from), 0))
        if is_ranked:
            found += tl.histogram(part_of(value, best, inverse, BINS) >> PART_BITS, BINS)
    bins = tl.arange(0, BINS)
    if is_ranked:
        tl.atomic_add(histograms + row * BINS + bins, found, mask=found > 0, sem="relaxed")
    words = state + row * STATE
    if is_last(words + WEIGHED, tl.num_programs(1)):
        totals = tl.load(block_totals + at, mask=all_blocks < NUM_BLOCKS, other=0)
        if is_ranked:
            counts = tl.load(histograms + row * BINS + bins)
            bound, within = _bound(counts, tl.sum(totals, 0), k, p, VOCAB, BINS)
            is_few = within <= MAX_CANDIDATES
            tl.store(words + BOUND, bound)
            tl.store(words + ROAD, tl.where(is_few, FEW, MANY))
            if is_few == 0:
                number = tl.where(bins <= bound, counts // PART_TOKENS + 1, 0)
                tl.store(parts + row * 2 * BINS + bins, tl.cumsum(number, 0) - number)
                tl.store(parts + (row * 2 + 1) * BINS + bins, number)
                all_parts = tl.arange(0, PARTS)
                tl.store(part_counts + row * PARTS + all_parts, tl.zeros((PARTS,), tl.int32))
                tl.store(part_masses + row * PARTS + all_parts, tl.zeros((PARTS,), tl.int64))
        else:
            token = _draw_by_id(x, best, inverse, floor, totals, tl.load(points + row), VOCAB, BLOCK)
            tl.store(token_ids + row, token.to(tl.int64))
