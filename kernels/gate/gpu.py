"""The choice of experts on a GPU: one warp a row, its scores in registers from the first sigmoid to the last weight.

Bytes: T * E * 4 of logits read, T * K * 8 of ids and weights written (T = 1, E = 256, K = 8: 1.1 KB, a launch);
FLOP: about T * E * (8 + 2 * K). A row's answer depends on nothing but the row.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from kernels.gate import GateShape

NUM_WARPS = 1  # 256 scores are eight a lane; reductions stay within the warp


@triton.jit
def _sortable(values: tl.tensor, index: tl.tensor) -> tl.tensor:
    """Keys as int64 that order as (value, then lower index first) and are all different. No value is NaN or -0."""
    bits = values.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _value(keys: tl.tensor) -> tl.tensor:
    """The fp32 values that `_sortable` made keys of."""
    ordered = (keys >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def choose_kernel(
    logits: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    counts: tl.tensor,
    scale: tl.tensor,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    COUNTS: tl.constexpr,
    GROUPS_POW2: tl.constexpr,
    SIZE_POW2: tl.constexpr,
    K_POW2: tl.constexpr,
) -> None:
    """One row: logits [T, E] fp32 -> ids [T, K] int32, weights [T, K] fp32, and its K added to counts [E] int32."""
    LOWEST: tl.constexpr = -(2**63)  # below every key: a place that is empty or already taken
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_POW2)
    expert = group[:, None] * GROUP_SIZE + tl.arange(0, SIZE_POW2)[None, :]
    exists = (group[:, None] < NUM_GROUPS) & (tl.arange(0, SIZE_POW2)[None, :] < GROUP_SIZE)

    logit = tl.load(logits + row * (NUM_GROUPS * GROUP_SIZE) + expert, mask=exists, other=0.0)
    scores = 1.0 / (1.0 + tl.exp(-logit))
    biased = scores + tl.load(bias + expert, mask=exists, other=0.0)
    biased = tl.where(biased == biased, biased, float("-inf"))

    keys = tl.where(exists, _sortable(biased, expert), LOWEST)
    best = tl.max(keys, 1)
    second = tl.max(tl.where(keys == best[:, None], LOWEST, keys), 1)
    group_keys = tl.where(group < NUM_GROUPS, _sortable(_value(best) + _value(second), group), LOWEST)
    is_kept = group < 0
    for _ in tl.static_range(TOPK_GROUPS):
        is_best = group_keys == tl.max(group_keys, 0)
        is_kept = is_kept | is_best
        group_keys = tl.where(is_best, LOWEST, group_keys)

    # Experts of dropped groups rank last but stay rankable: a row of NaNs still gets K different ids.
    limited = tl.where(is_kept[:, None], biased, float("-inf"))
    keys = tl.where(exists, _sortable(limited, expert), LOWEST)
    slot = tl.arange(0, K_POW2)
    chosen_ids = tl.zeros((K_POW2,), tl.int32)
    chosen_scores = tl.zeros((K_POW2,), tl.float32)
    for k in tl.static_range(TOP_K):
        is_best = keys == tl.max(tl.max(keys, 1), 0)
        chosen_ids = tl.where(slot == k, tl.sum(tl.sum(tl.where(is_best, expert, 0), 1), 0), chosen_ids)
        chosen_scores = tl.where(slot == k, tl.sum(tl.sum(tl.where(is_best, scores, 0.0), 1), 0), chosen_scores)
        keys = tl.where(is_best, LOWEST, keys)

    if NORMALISE:
        chosen_scores = chosen_scores / (tl.sum(chosen_scores, 0) + 1e-20)
    tl.store(ids + row * TOP_K + slot, chosen_ids, mask=slot < TOP_K)
    tl.store(weights + row * TOP_K + slot, chosen_scores * scale, mask=slot < TOP_K)
    if COUNTS:
        tl.atomic_add(counts + chosen_ids, 1, mask=slot < TOP_K, sem="relaxed")


def choose(logits: torch.Tensor, bias: torch.Tensor, shape: GateShape) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [T, E] fp32 -> ids [T, K] int32, weights [T, K] fp32. Ties go to the lower id."""
    ids, weights = _outputs(logits, shape)
    _launch(logits, bias, shape, ids, weights, None)
    return ids, weights


def choose_and_count(
    logits: torch.Tensor, bias: torch.Tensor, shape: GateShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `choose`, and how many of the T * K choices fell on each expert, [E] int32."""
    ids, weights = _outputs(logits, shape)
    counts = torch.zeros(logits.shape[1], dtype=torch.int32, device=logits.device)
    _launch(logits, bias, shape, ids, weights, counts)
    return ids, weights, counts


def constants(num_experts: int, shape: GateShape, counts: bool) -> dict[str, int | bool]:
    """The constants that `choose_kernel` is compiled with."""
    group_size = num_experts // shape.num_expert_groups
    return {
        "NUM_GROUPS": shape.num_expert_groups,
        "GROUP_SIZE": group_size,
        "TOPK_GROUPS": shape.topk_groups,
        "TOP_K": shape.top_k,
        "NORMALISE": shape.normalise,
        "COUNTS": counts,
        "GROUPS_POW2": triton.next_power_of_2(shape.num_expert_groups),
        "SIZE_POW2": triton.next_power_of_2(group_size),
        "K_POW2": triton.next_power_of_2(shape.top_k),
    }


def _outputs(logits: torch.Tensor, shape: GateShape) -> tuple[torch.Tensor, torch.Tensor]:
    size = (logits.shape[0], shape.top_k)
    ids = torch.empty(size, dtype=torch.int32, device=logits.device)
    return ids, torch.empty(size, dtype=torch.float32, device=logits.device)


def _launch(
    logits: torch.Tensor,
    bias: torch.Tensor,
    shape: GateShape,
    ids: torch.Tensor,
    weights: torch.Tensor,
    counts: torch.Tensor | None,
) -> None:
    if logits.shape[0]:
        choose_kernel[(logits.shape[0],)](
            *(logits, bias, ids, weights, ids if counts is None else counts, shape.scale),
            **constants(logits.shape[1], shape, counts is not None),
            num_warps=NUM_WARPS,
        )
