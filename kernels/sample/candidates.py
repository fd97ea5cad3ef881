"""The draw of a ranked row with few candidates: they are compared with each other, which needs no order."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.sample.masses import id_of, mass_of, target_of, value_of


@triton.jit
def draw_candidate(
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
