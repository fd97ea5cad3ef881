"""Searches in a ranked row of many candidates, whose ids are in the order of parts: each looks into one part.

The sums up to the end of each part tell which; the keys of its tokens, which are some dozens, are bisected. Where most
tokens are equal they are all in one part, and each of some 20 steps of a search reads them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.sample.masses import divided, key_of, mass_of, part_of, value_of


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
def mass_from(
    x: tl.tensor,
    order: tl.tensor,
    counts: tl.tensor,
    masses: tl.tensor,
    parts: tl.tensor,
    key: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    BINS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tl.tensor:
    """The mass of the tokens of this key and greater ones."""
    part = divided(part_of(value_of(key), best, inverse, BINS), parts, BINS)
    start, end = _before(counts, part), tl.load(counts + part)
    return _before(masses, part) + _weight_from(x, order, start, end, key, best, inverse, True, AT_ONCE)


@triton.jit
def reaching_key(
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
def floor_key(best: tl.tensor, inverse: tl.tensor, floor: tl.tensor) -> tl.tensor:
    """The least key of a token that min_p lets live."""
    low, high = tl.full((), -(1 << 31), tl.int64), key_of(best, tl.zeros((), tl.int32)) >> 20  # high lives
    while high - low > 1:
        middle = (low + high) >> 1
        value = value_of(middle << 20)
        lives = mass_of(value, best, inverse, floor) > 0
        high = tl.where(lives, middle, high)
        low = tl.where(lives, low, middle)
    return high << 20
