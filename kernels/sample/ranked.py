"""The third stage, for rows that top-k or top-p limits: few tokens that are likely enough become candidates.

They are compared with each other, which needs no order, and one of them is drawn. Where they are too many for that, the
third stage sums what the parts of the bins hold instead, for the fourth (kernels/sample/long_road.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.sample.masses import (
    BOUND,
    DONE,
    FEW,
    FOUND,
    GATHERED,
    PART_BITS,
    ROAD,
    block_tokens,
    divided,
    id_of,
    inverse_heat,
    is_last,
    key_of,
    mass_of,
    part_of,
    row_limits,
    target_of,
    value_of,
)


@triton.jit
def _draw_candidate(
    candidates: tl.tensor,
    count: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    total: tl.tensor,
    k: tl.tensor,
    p: tl.tensor,
    floor: tl.tensor,
    point: tl.tensor,
    VOCAB: tl.constexpr,
    ROOM: tl.constexpr,
    OTHERS: tl.constexpr,
) -> tl.tensor:
    """The drawn one of `count` candidates, given as keys in any order; each sums the masses of those before it."""
    own = tl.arange(0, ROOM)
    key = tl.load(candidates + own, mask=own < count, other=0)
    mass = tl.where(own < count, mass_of(value_of(key), best, inverse, 0.0), 0)
    rank, above = tl.zeros((ROOM,), tl.int32), tl.zeros((ROOM,), tl.int64)
    for start in range(0, count, OTHERS):
        other = start + tl.arange(0, OTHERS)
        other_key = tl.load(candidates + other, mask=other < count, other=0)
        other_mass = mass_of(value_of(other_key), best, inverse, 0.0)
        is_above = (other_key[None, :] > key[:, None]) & (other < count)[None, :]
        rank += tl.sum(is_above.to(tl.int32), 1)
        above += tl.sum(tl.where(is_above, other_mass[None, :], 0), 1)
    is_kept = (own < count) & (rank < k)
    # Without top-k the nucleus is one of all tokens, of which the candidates are a part.
    whole = tl.where(k < VOCAB, tl.sum(tl.where(is_kept, mass, 0), 0), total)
    nucleus = tl.where(p < 1.0, p * whole.to(tl.float64), float("inf"))
    is_kept = is_kept & ((rank == 0) | (above.to(tl.float64) < nucleus))
    kept = tl.where(is_kept, mass_of(value_of(key), best, inverse, floor), 0)
    target = target_of(point, tl.sum(kept, 0))
    return tl.max(tl.where((above <= target) & (target < above + kept), id_of(key), 0), 0)


@launched
@triton.jit(do_not_specialize=["blocks_each"])
def gather_kernel(
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
    token_ids: tl.tensor,
    blocks_each: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCKS_POW2: tl.constexpr,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    FEW_CANDIDATES: tl.constexpr,
    OTHERS: tl.constexpr,
    FEW_OTHERS: tl.constexpr,
    STATE: tl.constexpr,
) -> None:
    """Blocks of one ranked row of logits [R, VOCAB]: few candidates -> candidates [R, MAX_CANDIDATES], and token_ids.

    Of many, what the parts hold: part_counts [R, PARTS], at last where each begins; part_masses, at last the sum up to
    each one's end.
    """
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    words = state + row * STATE
    road, bound = tl.load(words + ROAD), tl.load(words + BOUND)
    if road == DONE:
        return
    x, first = logits + row * VOCAB, tl.program_id(1) * blocks_each
    best, inverse = tl.load(bests + row), inverse_heat(tl.load(temperature + row))
    candidates += row * MAX_CANDIDATES
    parts += row * 2 * BINS
    part_counts += row * PARTS
    part_masses += row * PARTS
    for block in range(first, tl.minimum(first + blocks_each, NUM_BLOCKS)):
        nearest = part_of(tl.load(block_bests + row * NUM_BLOCKS + block), best, inverse, BINS) >> PART_BITS
        if nearest <= bound:
            ids, value = block_tokens(x, block, VOCAB, BLOCK)
            part = part_of(value, best, inverse, BINS)
            is_near = (part >> PART_BITS) <= bound
            if road == FEW:
                number = tl.sum(is_near.to(tl.int32), 0)
                place = tl.atomic_add(words + FOUND, number) + tl.cumsum(is_near.to(tl.int32), 0) - 1
                tl.store(candidates + place, key_of(value, ids), mask=is_near)
            else:
                own = divided(part, parts, bound, BINS, PARTS)
                tl.atomic_add(part_counts + own, tl.full((BLOCK,), 1, tl.int32), mask=is_near)
                tl.atomic_add(part_masses + own, mass_of(value, best, inverse, 0.0), mask=is_near)
    if is_last(words + GATHERED, tl.num_programs(1)):
        if road == FEW:
            k, p, floor = row_limits(row, top_k, top_p, min_p, VOCAB)
            point, count = tl.load(points + row), tl.load(words + FOUND)
            blocks = tl.arange(0, BLOCKS_POW2)
            totals = tl.load(block_totals + row * NUM_BLOCKS + blocks, mask=blocks < NUM_BLOCKS, other=0)
            total = tl.sum(totals, 0)
            if count <= FEW_CANDIDATES:
                token = _draw_candidate(
                    candidates, count, best, inverse, total, k, p, floor, point, VOCAB, FEW_CANDIDATES, FEW_OTHERS
                )
            else:
                token = _draw_candidate(
                    candidates, count, best, inverse, total, k, p, floor, point, VOCAB, MAX_CANDIDATES, OTHERS
                )
            tl.store(token_ids + row, token.to(tl.int64))
        else:
            own = tl.arange(0, PARTS)
            counts = tl.load(part_counts + own)
            masses = tl.load(part_masses + own)
            tl.debug_barrier()  # the sums move: all are read before one is written
            tl.store(part_counts + own, tl.cumsum(counts, 0) - counts)
            tl.store(part_masses + own, tl.cumsum(masses, 0))
