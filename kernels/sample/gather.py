"""The third stage, for rows that top-k or top-p limits: few tokens that are likely enough become candidates.

Where they are too many to be compared with each other, each bin is divided into parts of some dozens of tokens, and
what the parts hold is summed instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.arrivals import is_last
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
    inverse_heat,
    key_of,
    mass_of,
    part_of,
)


@launched
@triton.jit(do_not_specialize=["blocks_each"])
def gather_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    bests: tl.tensor,
    block_bests: tl.tensor,
    state: tl.tensor,
    candidates: tl.tensor,
    parts: tl.tensor,
    part_counts: tl.tensor,
    part_masses: tl.tensor,
    blocks_each: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    PIECES: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
    STATE: tl.constexpr,
) -> None:
    """Blocks of one ranked row of logits [R, VOCAB]: few candidates -> candidates [R, MAX_CANDIDATES].

    Keys, in any order. Of many, what the parts hold: part_counts [R, PARTS], at last where each begins; part_masses
    [R, PARTS], at last the sum up to each one's end.
    """
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    words = state + row * STATE
    road, bound = tl.load(words + ROAD), tl.load(words + BOUND)
    best, heat = tl.load(bests + row), tl.load(temperature + row)
    if road == DONE:
        return
    x, first = logits + row * VOCAB, tl.program_id(1) * blocks_each
    inverse = inverse_heat(heat)
    candidates += row * MAX_CANDIDATES
    parts += row * 2 * BINS
    part_counts += row * PARTS
    part_masses += row * PARTS
    for block in range(first, tl.minimum(first + blocks_each, NUM_BLOCKS)):
        nearest = part_of(tl.load(block_bests + row * NUM_BLOCKS + block), best, inverse, BINS) >> PART_BITS
        if (nearest <= bound) & (road == FEW):
            ids, value = block_tokens(x, block, VOCAB, BLOCK)
            is_near = (part_of(value, best, inverse, BINS) >> PART_BITS) <= bound
            number = tl.sum(is_near.to(tl.int32), 0)
            place = tl.atomic_add(words + FOUND, number, sem="relaxed") + tl.cumsum(is_near.to(tl.int32), 0) - 1
            tl.store(candidates + place, key_of(value, ids), mask=is_near)
        elif nearest <= bound:
            for piece in range(block * PIECES, block * PIECES + PIECES):
                _, value = block_tokens(x, piece, VOCAB, BLOCK // PIECES)
                part = part_of(value, best, inverse, BINS)
                is_near = (part >> PART_BITS) <= bound
                own = divided(part, parts, BINS)
                tl.atomic_add(part_counts + own, tl.full(own.shape, 1, tl.int32), mask=is_near, sem="relaxed")
                tl.atomic_add(part_masses + own, mass_of(value, best, inverse, 0.0), mask=is_near, sem="relaxed")
    if road == FEW:
        return
    if is_last(words + GATHERED, tl.num_programs(1)):
        number, mass = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
        for start in range(0, PARTS, PARTS_AT_ONCE):
            own = start + tl.arange(0, PARTS_AT_ONCE)
            counts, masses = tl.load(part_counts + own), tl.load(part_masses + own)
            tl.debug_barrier()  # the sums move: all are read before one is written
            tl.store(part_counts + own, number + tl.cumsum(counts, 0) - counts)
            tl.store(part_masses + own, mass + tl.cumsum(masses, 0))
            number += tl.sum(counts, 0)
            mass += tl.sum(masses, 0)
