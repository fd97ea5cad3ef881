"""The gate on a GPU: logits split over H, then one warp a row from the first sigmoid to the last weight.

Bytes: E * H * 4 of weights for every BLOCK_ROWS rows, from the second on out of L2; T * H * 2 of hidden for every
BLOCK_EXPERTS experts; SPLITS * T * E * 8 of partial sums written and read; T * K * 8 out. FLOP: 6 * T * E * H on the
tensor cores and about 6 * E * H for every BLOCK_ROWS rows to split the weights; T * E * (8 + K).
E = 256, H = 4096, one row: 4.2 MB of weights, 1.05 us at 4.0 TB/s (H20 datasheet), and two launches; 2048 rows: 12.9
GFLOP, 13 us at 989 TFLOP/s (H100 datasheet).
A logit's order of additions depends on the tile and this on the number of rows, in batch-invariant mode on nothing.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.gate.logits import partial_logits
from kernels.gate.tiles import loads_first
from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous

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


@launched
@triton.jit(do_not_specialize=["num_rows"])
def choose_kernel(
    partial: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
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
) -> None:
    """One row: partial [SPLITS, T, E] -> ids [T, K] int32, weights [T, K] fp32.

    Keys are of 32 bits, ties are settled by a second reduction: a warp's largest of these is one instruction.
    """
    await_previous()
    LOWEST: tl.constexpr = -(2**31)  # below every key: a place that is empty or already taken
    MINUS_INFINITY: tl.constexpr = -2139095041  # its key
    NUM_PLACES: tl.constexpr = GROUPS_POW2 * SIZE_POW2
    NUM_EXPERTS: tl.constexpr = NUM_GROUPS * GROUP_SIZE
    row = tl.program_id(0)
    place = tl.arange(0, NUM_PLACES)
    expert = place // SIZE_POW2 * GROUP_SIZE + place % SIZE_POW2
    exists = (place // SIZE_POW2 < NUM_GROUPS) & (place % SIZE_POW2 < GROUP_SIZE)

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

    chosen_scores = tl.where(slot < TOP_K, tl.gather(scores, chosen, 0), 0.0)
    if NORMALISE:
        chosen_scores = chosen_scores / (tl.sum(chosen_scores, 0) + 1e-20)
    tl.store(ids + row * TOP_K + slot, chosen // SIZE_POW2 * GROUP_SIZE + chosen % SIZE_POW2, mask=slot < TOP_K)
    tl.store(weights + row * TOP_K + slot, chosen_scores * scale, mask=slot < TOP_K)


def sigmoid_group_topk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shape: GateShape,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.gate.sigmoid_group_topk`; weight is [E, H]."""
    num_rows, num_experts = hidden.shape[0], weight.shape[0]
    ids = torch.empty(num_rows, shape.top_k, dtype=torch.int32, device=hidden.device)
    weights = torch.empty(num_rows, shape.top_k, dtype=torch.float32, device=hidden.device)
    if num_rows:
        partial = partial_logits(hidden, weight)
        assert partial.numel() < 2**31, f"{num_rows} rows: the kernel of the choice counts in int32"
        choose_kernel[(num_rows,)](
            *(partial, bias, ids, weights, shape.scale, num_rows),
            **choose_constants(partial.shape[0], num_experts, shape),
            **CHOOSE_OPTIONS,
        )
    return ids, weights


@cache
def choose_constants(splits: int, num_experts: int, shape: GateShape) -> dict[str, int | bool]:
    """What `choose_kernel` is compiled with."""
    group_size = num_experts // shape.num_expert_groups
    return {
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
