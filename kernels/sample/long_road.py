"""The fourth stage, for ranked rows of too many candidates to compare: each search looks into one part of a bin.

Ids are put in the order of parts. The program that ends last then finds the k-th token, the nucleus's last and the drawn
one, each by the parts' sums and by bisecting the keys of the tokens in one part, which are some dozens. Where most
tokens are equal they are all in one part, and each of some 20 steps of a search reads them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.sample.masses import (
    BOUND,
    MANY,
    PART_BITS,
    PLACED,
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
def _before(sums: tl.tensor, part: tl.tensor) -> tl.tensor:
    """Sums up to each part's end -> what lies before a part."""
    return tl.load(sums + part - 1, mask=part > 0, other=0)


@triton.jit
def _key_range(
    x: tl.tensor, order: tl.tensor, start: tl.tensor, end: tl.tensor, AT_ONCE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The least key of the tokens order[start:end], and the one after the greatest."""
    least, greatest = tl.full((AT_ONCE,), 1 << 51, tl.int64), tl.full((AT_ONCE,), -(1 << 51), tl.int64)
    for first in range(start, end, AT_ONCE):
        at = first + tl.arange(0, AT_ONCE)
        ids = tl.load(order + at, mask=at < end, other=0)
        key = key_of(tl.load(x + ids, mask=at < end, other=float("-inf")), ids)
        least = tl.minimum(least, tl.where(at < end, key, 1 << 51))
        greatest = tl.maximum(greatest, tl.where(at < end, key, -(1 << 51)))
    return tl.min(least, 0), tl.max(greatest, 0) + 1


@triton.jit
def _weight_from(
    x: tl.tensor,
    order: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    key: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    BY_MASS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tl.tensor:
    """How many of the tokens order[start:end] have this key or a greater one, or their mass."""
    weight = tl.zeros((AT_ONCE,), tl.int64)
    for first in range(start, end, AT_ONCE):
        at = first + tl.arange(0, AT_ONCE)
        ids = tl.load(order + at, mask=at < end, other=0)
        value = tl.load(x + ids, mask=at < end, other=float("-inf"))
        is_counted = (key_of(value, ids) >= key) & (at < end)
        own = mass_of(value, best, inverse, 0.0) if BY_MASS else tl.full((AT_ONCE,), 1, tl.int64)
        weight += tl.where(is_counted, own, 0)
    return tl.sum(weight, 0)


@triton.jit
def _mass_from(
    x: tl.tensor,
    order: tl.tensor,
    counts: tl.tensor,
    masses: tl.tensor,
    parts: tl.tensor,
    bound: tl.tensor,
    key: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tl.tensor:
    """The mass of the tokens of this key and greater ones."""
    part = divided(part_of(value_of(key), best, inverse, BINS), parts, bound, BINS, PARTS)
    start, end = _before(counts, part), tl.load(counts + part)
    return _before(masses, part) + _weight_from(x, order, start, end, key, best, inverse, True, AT_ONCE)


@triton.jit
def _reaching_key(
    x: tl.tensor,
    order: tl.tensor,
    counts: tl.tensor,
    sums: tl.tensor,
    wanted: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    BY_MASS: tl.constexpr,
    PARTS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tl.tensor:
    """The greatest key such that the tokens of keys as great are `wanted` in number, or have that mass.

    `sums` are the counts, or the masses, up to the end of each part; the last is at least what is wanted.
    """
    part = tl.sum((tl.load(sums + tl.arange(0, PARTS)) < wanted).to(tl.int32), 0)
    left = wanted - _before(sums, part)
    start, end = _before(counts, part), tl.load(counts + part)
    low, high = _key_range(x, order, start, end, AT_ONCE)  # low reaches, high does not
    while high - low > 1:
        middle = (low + high) >> 1
        reaches = _weight_from(x, order, start, end, middle, best, inverse, BY_MASS, AT_ONCE) >= left
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle)
    return low


@triton.jit
def _floor_key(best: tl.tensor, inverse: tl.tensor, floor: tl.tensor) -> tl.tensor:
    """The least key of a token that min_p lets live."""
    low, high = tl.full((), -(1 << 31), tl.int64), key_of(best, tl.zeros((), tl.int32)) >> 20  # high lives
    while high - low > 1:
        middle = (low + high) >> 1
        value = value_of(middle << 20)
        lives = mass_of(value, best, inverse, floor) > 0
        high = tl.where(lives, middle, high)
        low = tl.where(lives, low, middle)
    return high << 20


@launched
@triton.jit(do_not_specialize=["blocks_each"])
def place_kernel(
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
    STATE: tl.constexpr,
) -> None:
    """Blocks of one row of logits [R, VOCAB] on the long road -> order [R, VOCAB] of those near enough, token_ids.

    part_counts [R, PARTS] are where each part begins, and become where it ends.
    """
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    words = state + row * STATE
    if tl.load(words + ROAD) != MANY:
        return
    bound, first = tl.load(words + BOUND), tl.program_id(1) * blocks_each
    best, inverse = tl.load(bests + row), inverse_heat(tl.load(temperature + row))
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
            place = tl.atomic_add(part_counts + divided(part, parts, bound, BINS, PARTS), 1, mask=is_near)
            tl.store(order + place, ids, mask=is_near)
    if is_last(words + PLACED, tl.num_programs(1)) == 0:
        return
    k, p, floor = row_limits(row, top_k, top_p, min_p, VOCAB)
    listed, last = tl.load(part_masses + PARTS - 1), _floor_key(best, inverse, floor)
    # Without top-k the nucleus is one of all tokens; where the k-th is not listed, those behind have no mass.
    blocks = tl.arange(0, BLOCKS_POW2)
    totals = tl.load(block_totals + row * NUM_BLOCKS + blocks, mask=blocks < NUM_BLOCKS, other=0)
    whole = tl.sum(totals, 0)
    if (k < VOCAB) & (k < tl.load(part_counts + PARTS - 1)):
        kth = _reaching_key(x, order, part_counts, part_counts, k, best, inverse, False, PARTS, AT_ONCE)
        last = tl.maximum(last, kth)
        whole = _mass_from(
            x, order, part_counts, part_masses, parts, bound, kth, best, inverse, BINS, PARTS, AT_ONCE
        )
    if p < 1.0:
        nucleus = tl.minimum(tl.maximum(tl.ceil(p * whole.to(tl.float64)).to(tl.int64), 1), listed)
        end = _reaching_key(x, order, part_counts, part_masses, nucleus, best, inverse, True, PARTS, AT_ONCE)
        last = tl.maximum(last, end)
    kept = _mass_from(x, order, part_counts, part_masses, parts, bound, last, best, inverse, BINS, PARTS, AT_ONCE)
    wanted = target_of(tl.load(points + row), kept) + 1
    drawn = _reaching_key(x, order, part_counts, part_masses, wanted, best, inverse, True, PARTS, AT_ONCE)
    tl.store(token_ids + row, id_of(drawn).to(tl.int64))
