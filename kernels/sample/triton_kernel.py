"""Drawing tokens on a GPU, one program a row and no word from the host: candidates first, then one of them.

A mass is exp((x - best) / temperature) as an integer of 2^-40, so that sums are exact in whatever order and a row's
token depends on nothing but the row. Ranked rows (top-k, top-p) narrow the vocabulary to at most MAX_CANDIDATES by
bisecting a bound; each candidate then sums the masses of those before it, which needs no sorting. Where a nucleus is
larger the same sums run over the whole vocabulary, once for every bit of a (value, id) key: exact, and slow.

Bytes: R * V * 4 once from memory, then from L2: about 8 passes for a ranked row, 3 for another, some 180 for a nucleus
of more than MAX_CANDIDATES. FLOP: about 6 * R * V a pass. V = 157184: 629 KB a row, 0.16 us at 4.0 TB/s (H20
datasheet); at few rows it is the rate at which one SM reads L2 that counts.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous

if TYPE_CHECKING:
    from kernels.sample import DrawSettings

MAX_CANDIDATES = 1024
BLOCK = 2048  # tokens of the vocabulary at once; of twice as many the bounds' loop spills eight bytes
OTHERS = 8  # candidates that all are compared with at once: 16 comparisons a thread, of 32 the draw spills
ACCEPT_AT_ONCE = 32  # drafts that are compared at once: a warp's
OPTIONS = launch_options(num_warps=16)
ACCEPT_OPTIONS = launch_options(num_warps=1)


@triton.jit
def _tokens(x: tl.tensor, start: tl.tensor, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Ids from `start` on and their logits, -inf behind the last."""
    ids = start + tl.arange(0, BLOCK)
    return ids, tl.load(x + ids, mask=ids < VOCAB, other=float("-inf"))


@triton.jit
def _mass(logits: tl.tensor, best: tl.tensor, inverse: tl.tensor, min_p: tl.tensor) -> tl.tensor:
    """Masses as int64 units of 2^-40 of the best token's; none below min_p."""
    # A maximum also takes the NaN of an infinite distance times a flushed inverse; e^-100 is no unit.
    mass = tl.exp(tl.maximum((logits - best) * inverse, -100.0))
    return tl.where(mass >= min_p, mass * 1099511627776.0, 0.0).to(tl.int64)


@triton.jit
def _key(logits: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """Keys as int64 that order as (value, then lower id first) and are all different."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 20) | (0xFFFFF - ids).to(tl.int64)


@launched
@triton.jit
def candidates_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    best_out: tl.tensor,
    total_out: tl.tensor,
    count_out: tl.tensor,
    candidates: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
) -> None:
    """One row of logits [R, VOCAB]: maximum, sum of masses, and where it is ranked the ids that may be drawn.

    candidates [R, MAX_CANDIDATES] int32 hold `count_out[r]` ids; more than fit are counted and not kept. A row of
    temperature 0 is passed over.
    """
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    if heat == 0.0:
        return
    x = logits + row * VOCAB
    k, p = tl.load(top_k + row), tl.load(top_p + row)
    is_ranked = (k < VOCAB) | (p < 1.0)
    best = float("-inf")
    for start in range(0, VOCAB, BLOCK):
        _, value = _tokens(x, start, VOCAB, BLOCK)
        best = tl.maximum(best, tl.max(value, 0))
    inverse = 1.0 / heat
    floor = tl.where(is_ranked, 0.0, tl.load(min_p + row))
    total = tl.zeros((), tl.int64)
    for start in range(0, VOCAB, BLOCK):
        _, value = _tokens(x, start, VOCAB, BLOCK)
        total += tl.sum(_mass(value, best, inverse, floor), 0)
    tl.store(best_out + row, best)
    tl.store(total_out + row, total)
    if is_ranked:
        # Beyond `far` below the best no token has a mass. `near` is too near, `far` far enough; the first is a guess.
        near, far, middle = 0.0, tl.minimum(heat, 1e37) * 28.5, tl.minimum(heat, 1e37) * 28.5
        nucleus = (p * total.to(tl.float64)).to(tl.int64) + 1
        count = tl.zeros((), tl.int32) + MAX_CANDIDATES + 1
        step = tl.zeros((), tl.int32)
        while (count > MAX_CANDIDATES) & (step < 24):
            found, weight = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
            for start in range(0, VOCAB, BLOCK):
                ids, value = _tokens(x, start, VOCAB, BLOCK)
                is_near = (value >= best - middle) & (ids < VOCAB)
                found += tl.sum(is_near.to(tl.int32), 0)
                weight += tl.sum(tl.where(is_near, _mass(value, best, inverse, 0.0), 0), 0)
            is_enough = (step == 0) | (found >= k) | ((k >= VOCAB) & (weight >= nucleus))
            far = tl.where(is_enough, middle, far)
            near = tl.where(is_enough, near, middle)
            count = tl.where(is_enough, found, count)
            middle = 0.5 * (near + far)
            step += 1
        tl.store(count_out + row, count)
        if count <= MAX_CANDIDATES:
            place = candidates + row * MAX_CANDIDATES
            for start in range(0, VOCAB, BLOCK):
                ids, value = _tokens(x, start, VOCAB, BLOCK)
                is_near = ((value >= best - far) & (ids < VOCAB)).to(tl.int32)
                tl.store(place + tl.cumsum(is_near, 0) - 1, ids, mask=is_near > 0)
                place += tl.sum(is_near, 0)


@triton.jit
def _target(point: tl.tensor, total: tl.tensor) -> tl.tensor:
    """The whole units that the distribution function must pass; fp64 may round the product up to the total."""
    return tl.minimum((point * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def _draw_by_id(
    x: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    min_p: tl.tensor,
    target: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The token at which the masses, summed in the order of ids, pass the target."""
    passed, before, first = tl.zeros((), tl.int64), tl.zeros((), tl.int64), tl.zeros((), tl.int32)
    for start in range(0, VOCAB, BLOCK):
        _, value = _tokens(x, start, VOCAB, BLOCK)
        after = passed + tl.sum(_mass(value, best, inverse, min_p), 0)
        is_here = (passed <= target) & (after > target)
        first = tl.where(is_here, start, first)
        before = tl.where(is_here, passed, before)
        passed = after
    ids, value = _tokens(x, first, VOCAB, BLOCK)
    reached = before + tl.cumsum(_mass(value, best, inverse, min_p), 0)
    return tl.min(tl.where(reached > target, ids, VOCAB - 1), 0)


@triton.jit
def _draw_candidate(
    x: tl.tensor,
    candidates: tl.tensor,
    count: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    total: tl.tensor,
    settings: tl.tensor,
    VOCAB: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    OTHERS: tl.constexpr,
) -> tl.tensor:
    """The drawn one of `count` candidates; settings are top_k, top_p, min_p and the point."""
    k, p, min_p, point = settings
    own = tl.arange(0, MAX_CANDIDATES)
    ids = tl.load(candidates + own, mask=own < count, other=0)
    value = tl.load(x + ids, mask=own < count, other=float("-inf"))
    mass = tl.where(own < count, _mass(value, best, inverse, 0.0), 0)
    key = _key(value, ids)
    rank, above = tl.zeros((MAX_CANDIDATES,), tl.int32), tl.zeros((MAX_CANDIDATES,), tl.int64)
    for start in range(0, count, OTHERS):
        other = start + tl.arange(0, OTHERS)
        other_ids = tl.load(candidates + other, mask=other < count, other=0)
        other_value = tl.load(x + other_ids, mask=other < count, other=float("-inf"))
        is_above = (_key(other_value, other_ids)[None, :] > key[:, None]) & (other < count)[None, :]
        rank += tl.sum(is_above.to(tl.int32), 1)
        above += tl.sum(tl.where(is_above, _mass(other_value, best, inverse, 0.0)[None, :], 0), 1)
    is_kept = (own < count) & (rank < k)
    # Without top-k the nucleus is one of all tokens, of which the candidates are a part.
    whole = tl.where(k < VOCAB, tl.sum(tl.where(is_kept, mass, 0), 0), total)
    nucleus = tl.where(p < 1.0, p * whole.to(tl.float64), float("inf"))
    is_kept = is_kept & ((rank == 0) | (above.to(tl.float64) < nucleus))
    kept = tl.where(is_kept, _mass(value, best, inverse, min_p), 0)
    target = _target(point, tl.sum(kept, 0))
    return tl.max(tl.where((above <= target) & (target < above + kept), ids, 0), 0)


@triton.jit
def _reaching_key(
    x: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    wanted: tl.tensor,
    BY_MASS: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The greatest key such that the tokens of keys as great are `wanted` in number, or have that mass."""
    low, high = tl.full((), -(1 << 51), tl.int64), tl.full((), 1 << 51, tl.int64)  # low reaches, high does not
    while high - low > 1:
        middle = (low + high) >> 1
        found = tl.zeros((), tl.int64)
        for start in range(0, VOCAB, BLOCK):
            ids, value = _tokens(x, start, VOCAB, BLOCK)
            is_above = (_key(value, ids) >= middle) & (ids < VOCAB)
            weight = _mass(value, best, inverse, 0.0) if BY_MASS else tl.full(ids.shape, 1, tl.int64)
            found += tl.sum(tl.where(is_above, weight, 0), 0)
        low = tl.where(found >= wanted, middle, low)
        high = tl.where(found >= wanted, high, middle)
    return low


@triton.jit
def _mass_from(
    x: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    min_p: tl.tensor,
    key: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The mass of the tokens of this key and greater ones."""
    found = tl.zeros((), tl.int64)
    for start in range(0, VOCAB, BLOCK):
        ids, value = _tokens(x, start, VOCAB, BLOCK)
        is_above = (_key(value, ids) >= key) & (ids < VOCAB)
        found += tl.sum(tl.where(is_above, _mass(value, best, inverse, min_p), 0), 0)
    return found


@triton.jit
def _draw_by_rank(
    x: tl.tensor,
    best: tl.tensor,
    inverse: tl.tensor,
    total: tl.tensor,
    settings: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """As `_draw_candidate`, over the whole vocabulary."""
    k, p, min_p, point = settings
    last = tl.full((), -(1 << 51), tl.int64)
    if k < VOCAB:
        last = _reaching_key(x, best, inverse, k, False, VOCAB, BLOCK)
        total = _mass_from(x, best, inverse, 0.0, last, VOCAB, BLOCK)
    if p < 1.0:
        nucleus = tl.maximum(tl.ceil(p * total.to(tl.float64)).to(tl.int64), 1)
        last = tl.maximum(last, _reaching_key(x, best, inverse, nucleus, True, VOCAB, BLOCK))
    target = _target(point, _mass_from(x, best, inverse, min_p, last, VOCAB, BLOCK))
    drawn = _reaching_key(x, best, inverse, target + 1, True, VOCAB, BLOCK)
    return 0xFFFFF - (drawn & 0xFFFFF).to(tl.int32)


@launched
@triton.jit
def draw_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    points: tl.tensor,
    bests: tl.tensor,
    totals: tl.tensor,
    counts: tl.tensor,
    candidates: tl.tensor,
    ids: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    OTHERS: tl.constexpr,
) -> None:
    """One row of logits [R, VOCAB] after `candidates_kernel` -> ids [R] int64; 0 for a row of temperature 0."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    if heat == 0.0:
        tl.store(ids + row, tl.zeros((), tl.int64))
        return
    x = logits + row * VOCAB
    best, total, count = tl.load(bests + row), tl.load(totals + row), tl.load(counts + row)
    inverse = 1.0 / heat
    k, p, floor, point = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row), tl.load(points + row)
    if (k >= VOCAB) & (p >= 1.0):
        token = _draw_by_id(x, best, inverse, floor, _target(point, total), VOCAB, BLOCK)
    elif count <= MAX_CANDIDATES:
        chosen = candidates + row * MAX_CANDIDATES
        token = _draw_candidate(
            x, chosen, count, best, inverse, total, (k, p, floor, point), VOCAB, MAX_CANDIDATES, OTHERS
        )
    else:
        token = _draw_by_rank(x, best, inverse, total, (k, p, floor, point), VOCAB, BLOCK)
    tl.store(ids + row, token.to(tl.int64))


@launched
@triton.jit
def accept_kernel(
    token_ids: tl.tensor, draft_ids: tl.tensor, row_starts: tl.tensor, accepted: tl.tensor, AT_ONCE: tl.constexpr
) -> None:
    """One sequence: how many drafts in a row equal what was sampled for their places."""
    await_previous()
    sequence = tl.program_id(0)
    first, last = tl.load(row_starts + sequence), tl.load(row_starts + sequence + 1) - 1
    count = tl.maximum(last - first, 0)
    for start in range(first, last, AT_ONCE):
        row = start + tl.arange(0, AT_ONCE)
        drafted = tl.load(draft_ids + row, mask=row < last, other=0)
        sampled = tl.load(token_ids + row, mask=row < last, other=0)
        count = tl.minimum(count, tl.min(tl.where(sampled != drafted, row - first, count), 0))
    tl.store(accepted + sequence, count)


def draw_tokens(logits: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """Logits [R, V] fp32 -> ids [R] int64; 0 where the temperature is 0, whose rows cost nothing."""
    num_rows, vocab_size = logits.shape
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if not num_rows:
        return ids
    constants = draw_constants(vocab_size)
    own = (settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    best = torch.empty(num_rows, device=logits.device)
    total = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    count = torch.zeros(num_rows, dtype=torch.int32, device=logits.device)
    candidates = torch.empty(num_rows, MAX_CANDIDATES, dtype=torch.int32, device=logits.device)
    candidates_kernel[(num_rows,)](logits, *own, best, total, count, candidates, **constants, **OPTIONS)
    draw_kernel[(num_rows,)](
        *(logits, *own, settings.points, best, total, count, candidates, ids), **constants, OTHERS=OTHERS, **OPTIONS
    )
    return ids


def accept_drafts(token_ids: torch.Tensor, draft_ids: torch.Tensor, row_starts: torch.Tensor) -> torch.Tensor:
    """See `kernels.sample.accept_drafts`."""
    num_sequences = len(row_starts) - 1
    accepted = torch.empty(num_sequences, dtype=torch.int32, device=token_ids.device)
    if num_sequences:
        accept_kernel[(num_sequences,)](
            token_ids, draft_ids, row_starts, accepted, AT_ONCE=ACCEPT_AT_ONCE, **ACCEPT_OPTIONS
        )
    return accepted


@cache
def draw_constants(vocab_size: int) -> dict[str, int]:
    """What `candidates_kernel` and `draw_kernel` are compiled with."""
    assert vocab_size < 1 << 20, f"{vocab_size} tokens: a key has twenty bits for the id"
    return {"VOCAB": vocab_size, "BLOCK": BLOCK, "MAX_CANDIDATES": MAX_CANDIDATES}
