"""From logits to experts: what the kernels of the choice share, and what they are compiled with."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kernels.launch import launch_options, loads_first

if TYPE_CHECKING:
    from kernels.gate import GateShape

# 256 scores are eight a lane; reductions stay within the warp.
CHOOSE_OPTIONS = loads_first(launch_options(num_warps=1))


@triton.jit
def _sortable(values: tl.tensor) -> tl.tensor:
    """fp32 as int32 that orders alike, above -2**31. No value is NaN or -0."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _value(key: tl.tensor) -> tl.tensor:
    """The fp32 values that `_sortable` made keys of."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _two_largest(
    first: tl.tensor, second: tl.tensor, other_first: tl.tensor, other_second: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Of two pairs in descending order."""
    return (
        tl.maximum(first, other_first),
        tl.maximum(tl.minimum(first, other_first), tl.maximum(second, other_second)),
    )


@triton.jit
def _kept_groups(keys: tl.tensor, NUM_GROUPS: tl.constexpr, TOPK_GROUPS: tl.constexpr) -> tl.tensor:
    """Which groups of keys [GROUPS_POW2, SIZE_POW2] have the largest sums of their two best values."""
    LOWEST: tl.constexpr = -(2**31)
    group = tl.arange(0, keys.shape[0])
    first, second = tl.reduce((keys, tl.full(keys.shape, LOWEST, tl.int32)), 1, _two_largest)
    key = tl.where(group < NUM_GROUPS, _sortable(_value(first) + _value(second)), LOWEST)
    # Counting those ahead is one reduction where taking the best again and again would be one for each that is kept.
    is_ahead = (key[None, :] > key[:, None]) | ((key[None, :] == key[:, None]) & (group[None, :] < group[:, None]))
    return tl.sum(is_ahead.to(tl.int32), 1) < TOPK_GROUPS


@triton.jit
def expert_of(place: tl.tensor, GROUP_SIZE: tl.constexpr, SIZE_POW2: tl.constexpr) -> tl.tensor:
    """The expert at a place, of which each group has SIZE_POW2."""
    return place // SIZE_POW2 * GROUP_SIZE + place % SIZE_POW2


@triton.jit
def is_expert(
    place: tl.tensor, NUM_GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, SIZE_POW2: tl.constexpr
) -> tl.tensor:
    """Whether there is an expert at a place."""
    return (place // SIZE_POW2 < NUM_GROUPS) & (place % SIZE_POW2 < GROUP_SIZE)


@triton.jit
def choose(
    partial: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    scale: tl.tensor,
    num_rows: tl.tensor,
    SPLITS: tl.constexpr,
    SPLITS_POW2: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    GROUPS_POW2: tl.constexpr,
    SIZE_POW2: tl.constexpr,
    K_POW2: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One row of partial [SPLITS, T, E] -> K_POW2 experts, best first, and their weights.

    And whether each place [GROUPS_POW2 * SIZE_POW2] is one of them. What lies past TOP_K is anything.
    Keys are of 32 bits, ties are settled by a second reduction: a warp's largest of these is one instruction.
    """
    LOWEST: tl.constexpr = -(2**31)  # below every key: a place that is empty or already taken
    MINUS_INFINITY: tl.constexpr = -2139095041  # its key
    NUM_PLACES: tl.constexpr = GROUPS_POW2 * SIZE_POW2
    NUM_EXPERTS: tl.constexpr = NUM_GROUPS * GROUP_SIZE
    place = tl.arange(0, NUM_PLACES)
    expert = expert_of(place, GROUP_SIZE, SIZE_POW2)
    exists = is_expert(place, NUM_GROUPS, GROUP_SIZE, SIZE_POW2)

    split = tl.arange(0, SPLITS_POW2)[:, None]
    at = partial + row * NUM_EXPERTS + expert[None, :] + split * (num_rows * NUM_EXPERTS)
    logit = tl.sum(tl.load(at, mask=(split < SPLITS) & exists[None, :], other=0.0), 0)
    scores = 1.0 / (1.0 + tl.exp(-logit))
    biased = scores + tl.load(bias + expert, mask=exists, other=0.0)
    biased = tl.where(biased == biased, biased, float("-inf"))

    keys = tl.where(exists, _sortable(biased), LOWEST)
    is_kept = _kept_groups(tl.reshape(keys, (GROUPS_POW2, SIZE_POW2)), NUM_GROUPS, TOPK_GROUPS)
    is_kept = tl.reshape(tl.broadcast_to(is_kept[:, None], (GROUPS_POW2, SIZE_POW2)), (NUM_PLACES,))
    # Experts of dropped groups rank last but stay rankable: a row of NaNs still gets K different ids.
    keys = tl.where(is_kept, keys, tl.minimum(keys, MINUS_INFINITY))
    slot = tl.arange(0, K_POW2)
    chosen = tl.zeros((K_POW2,), tl.int32)
    for k in range(TOP_K):
        best = tl.min(tl.where(keys == tl.max(keys, 0), place, NUM_PLACES), 0)
        chosen = tl.where(slot == k, best, chosen)
        keys = tl.where(place == best, LOWEST, keys)

    weights = tl.where(slot < TOP_K, tl.gather(scores, chosen, 0), 0.0)
    if NORMALISE:
        weights = weights / (tl.sum(weights, 0) + 1e-20)
    return expert_of(chosen, GROUP_SIZE, SIZE_POW2), weights * scale, exists & (keys == LOWEST)


@cache
def choose_constants(splits: int, num_experts: int, shape: GateShape, has_live: bool) -> dict[str, int | bool]:
    """What the kernels of the choice are compiled with."""
    group_size = num_experts // shape.num_expert_groups
    return {
        "HAS_LIVE": has_live,
        "SPLITS": splits,
        "SPLITS_POW2": triton.next_power_of_2(splits),
        "NUM_GROUPS": shape.num_expert_groups,
        "GROUP_SIZE": group_size,
        "TOPK_GROUPS": shape.topk_groups,
        "TOP_K": shape.top_k,
        "NORMALISE": shape.normalise,
        "GROUPS_POW2": triton.next_power_of_2(shape.num_expert_groups),
        "SIZE_POW2": triton.next_power_of_2(group_size),
        "K_POW2": triton.next_power_of_2(shape.top_k),
    }
