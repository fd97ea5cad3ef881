"""How attention ends: the splits of a context merged, and heads written in the dtype of the queries or in FP8.

A group of the block-wise FP8 format lies within one head, so a program that has a head can quantise it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.quantise.formats import FP8_BLOCK, FP8_MAX, SMALLEST_BLOCK_PEAK
from kernels.quantise.groups import group_scales, in_units

_GROUP, _SMALLEST_PEAK, _LARGEST = (tl.constexpr(n) for n in (FP8_BLOCK, SMALLEST_BLOCK_PEAK, FP8_MAX))


@triton.jit
def store_heads(
    out: tl.tensor,
    scales: tl.tensor,
    at: tl.tensor,
    mean: tl.tensor,
    exists: tl.tensor,
    query: tl.tensor,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    QUANTISED: tl.constexpr,
) -> None:
    """Results [N, DIM_POW2], rounded as `query` is, to heads `at` [N] of out [T * A, DIM].

    QUANTISED: from there to e4m3, with scales [T * A, DIM / 128].
    """
    channel = tl.arange(0, DIM_POW2)[None, :]
    is_stored = exists[:, None] & (channel < DIM)
    rounded = mean.to(query.dtype.element_ty)
    if QUANTISED:
        LINES: tl.constexpr = mean.shape[0]
        GROUPS: tl.constexpr = DIM_POW2 // _GROUP
        groups = tl.reshape(rounded.to(tl.float32), (LINES * GROUPS, _GROUP))
        scale = group_scales(groups, False, _SMALLEST_PEAK, _LARGEST)
        tl.store(out + at[:, None] * DIM + channel, tl.reshape(in_units(groups, scale), (LINES, DIM_POW2)), is_stored)
        group = tl.arange(0, GROUPS)[None, :]
        has_scale = exists[:, None] & (group < DIM // _GROUP)
        tl.store(scales + at[:, None] * (DIM // _GROUP) + group, tl.reshape(scale, (LINES, GROUPS)), has_scale)
    else:
        tl.store(out + at[:, None] * DIM + channel, rounded, mask=is_stored)


@triton.jit
def merged(
    partial: tl.tensor,
    partial_log: tl.tensor,
    first: tl.tensor,
    exists: tl.tensor,
    context: tl.tensor,
    length: tl.tensor,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tl.tensor:
    """The mean [N, DIM_POW2] of the means of a context's splits of `length`, weighed by their sums.

    Those of a head begin at `first` [N]; AT_ONCE after AT_ONCE. One in which nothing is seen counts for nothing.
    """
    LINES: tl.constexpr = first.shape[0]
    channel = tl.arange(0, DIM_POW2)[None, None, :]
    best = tl.full((LINES,), float("-inf"), tl.float32)
    total = tl.zeros((LINES,), tl.float32)
    mean = tl.zeros((LINES, DIM_POW2), tl.float32)
    split = tl.arange(0, AT_ONCE)[None, :]
    for start in range(0, context, AT_ONCE * length):
        place = first[:, None] + split
        is_one = exists[:, None] & (start + split * length < context)
        log = tl.load(partial_log + place, mask=is_one, other=float("-inf"))
        means = tl.load(
            partial + place[:, :, None] * DIM + channel, mask=is_one[:, :, None] & (channel < DIM), other=0.0
        )
        new_best = tl.maximum(best, tl.max(log, 1))
        base = tl.where(new_best == float("-inf"), 0.0, new_best)  # a window may hide the first splits
        weights = tl.exp2(log - base[:, None])
        shrink = tl.exp2(best - base)
        total = total * shrink + tl.sum(weights, 1)
        means = tl.where((log == float("-inf"))[:, :, None], 0.0, weights[:, :, None] * means)
        mean = mean * shrink[:, None] + tl.sum(means, 1)
        best = new_best
        first += AT_ONCE
    return mean / tl.where(exists, total, 1.0)[:, None]
