"""The last stage: the draw of the rows that top-k or top-p limits."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.arrivals import is_last
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.sample.candidates import draw_candidate
from kernels.sample.masses import (
    BOUND,
    DONE,
    FEW,
    FOUND,
    PART_BITS,
    PLACED,
    ROAD,
    block_tokens,
    divided,
    id_of,
    inverse_heat,
    part_of,
    row_limits,
    target_of,
)
from kernels.sample.searches import floor_key, mass_from, reaching_key


@launched
@triton.jit(do_not_specialize=["blocks_each"])
def draw_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    points: tl.tensor,
    bests: tl.tensor,
    block_bests: tl.tensor,
    block_totals: tl.tensor,
    state: tl.tensor,
    candidates: tl.tensor,
    parts: tl.tensor,
    part_counts: tl.tensor,
    part_masses: tl.tensor,
    order: tl.tensor,
    token_ids: tl.tensor,
    blocks_each: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCKS_POW2: tl.constexpr,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    FEW_CANDIDATES: tl.constexpr,
    OTHERS: tl.constexpr,
    FEW_OTHERS: tl.constexpr,
    STATE: tl.constexpr,
) -> None:
    """One ranked row of logits [R, VOCAB] -> token_ids [R].

    Of few candidates one program draws. Of many, the ids of its blocks -> order [R, VOCAB], and the last program draws;
    part_counts [R, PARTS] are where each part begins, and become where it ends.
    """
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    words = state + row * STATE
    road, bound, first = tl.load(words + ROAD), tl.load(words + BOUND), tl.program_id(1) * blocks_each
    count = tl.load(words + FOUND)
    best, inverse = tl.load(bests + row), inverse_heat(tl.load(temperature + row))
    k, p, floor = row_limits(row, top_k, top_p, min_p, VOCAB)
    point = tl.load(points + row)
    blocks = tl.arange(0, BLOCKS_POW2)
    total = tl.sum(tl.load(block_totals + row * NUM_BLOCKS + blocks, mask=blocks < NUM_BLOCKS, other=0), 0)
    if (road == DONE) | ((road == FEW) & (first > 0)):
        return
    if road == FEW:
        candidates += row * MAX_CANDIDATES
        if count <= FEW_CANDIDATES:
            token = draw_candidate(
                candidates, count, best, inverse, total, k, p, floor, point, VOCAB, FEW_CANDIDATES, FEW_OTHERS
            )
        else:
            token = draw_candidate(
                candidates, count, best, inverse, total, k, p, floor, point, VOCAB, MAX_CANDIDATES, OTHERS
            )
        tl.store(token_ids + row, token.to(tl.int64))
        return
    x = logits + row * VOCAB
    order += row * VOCAB
    parts += row * 2 * BINS
    part_counts += row * PARTS
    part_masses += row * PARTS
    for block in range(first, tl.minimum(first + blocks_each, NUM_BLOCKS)):
        nearest = part_of(tl.load(block_bests + row * NUM_BLOCKS + block), best, inverse, BINS) >> PART_BITS
        if nearest <= bound:
            ids, value = block_tokens(x, block, VOCAB, BLOCK)
            part = part_of(value, best, inverse, BINS)
            is_near = (part >> PART_BITS) <= bound
            place = tl.atomic_add(part_counts + divided(part, parts, BINS), 1, mask=is_near, sem="relaxed")
            tl.store(order + place, ids, mask=is_near)
    if is_last(words + PLACED, tl.num_programs(1)) == 0:
        return
    # Without top-k the nucleus is one of all tokens; where the k-th is not listed, those behind have no mass.
    listed, whole, last = tl.load(part_masses + PARTS - 1), total, floor_key(best, inverse, floor)
    if (k < VOCAB) & (k < tl.load(part_counts + PARTS - 1)):
        kth = reaching_key(x, order, part_counts, part_counts, k, best, inverse, False, PARTS, AT_ONCE)
        last = tl.maximum(last, kth)
        whole = mass_from(x, order, part_counts, part_masses, parts, kth, best, inverse, BINS, AT_ONCE)
    if p < 1.0:
        nucleus = tl.minimum(tl.maximum(tl.ceil(p * whole.to(tl.float64)).to(tl.int64), 1), listed)
        end = reaching_key(x, order, part_counts, part_masses, nucleus, best, inverse, True, PARTS, AT_ONCE)
        last = tl.maximum(last, end)
    kept = mass_from(x, order, part_counts, part_masses, parts, last, best, inverse, BINS, AT_ONCE)
    wanted = target_of(point, kept) + 1
    drawn = reaching_key(x, order, part_counts, part_masses, wanted, best, inverse, True, PARTS, AT_ONCE)
    tl.store(token_ids + row, id_of(drawn).to(tl.int64))
