"""The gate on a GPU: fp32 products split over H, then one warp a row from the first sigmoid to the last weight.

Bytes: E * H * 4 of weights for every BLOCK_ROWS rows, from the second on out of L2; T * H * 2 of hidden; SPLITS * T * E
* 8 of partial sums written and read; T * K * 8 out. FLOP: 2 * T * E * H and about T * E * (8 + 2 * K).
E = 256, H = 4096, one row: 4.2 MB of weights, 1.05 us at 4.0 TB/s (H20 datasheet), and two launches.
A logit is SPLITS chains of fp32 additions, each in the order of H, so a row's answer depends on nothing but the row.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels import native
from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous

if TYPE_CHECKING:
    from kernels.gate import GateShape

SPLITS = 16  # of H: with 32 experts a program, 128 programs read E * H = 256 * 4096 at one row; H20 has 78 SMs
BLOCK_EXPERTS, BLOCK_WIDTH = 32, 32
LOGITS_OPTIONS = launch_options(num_warps=4)
CHOOSE_OPTIONS = launch_options(num_warps=1)  # 256 scores are eight a lane; reductions stay within the warp


@launched
@triton.jit(do_not_specialize=["num_rows"])
def partial_logits_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    partial: tl.tensor,
    num_rows: tl.tensor,
    WIDTH: tl.constexpr,
    SPLIT_WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> None:
    """Hidden [T, H] any float, weight [E, H] fp32 -> partial [SPLITS, T, E] fp32, each over SPLIT_WIDTH channels."""
    await_previous()
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    expert = tl.program_id(1) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)
    split = tl.program_id(2)
    row_start = hidden + row[:, None].to(tl.int64) * WIDTH
    expert_start = weight + expert[:, None] * WIDTH
    total = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.float32)
    for start in range(0, SPLIT_WIDTH, BLOCK_WIDTH):
        channel = start + tl.arange(0, BLOCK_WIDTH)[None, :]
        at = split * SPLIT_WIDTH + channel
        exists = (channel < SPLIT_WIDTH) & (at < WIDTH)
        x = tl.load(row_start + at, mask=(row[:, None] < num_rows) & exists, other=0.0).to(tl.float32)
        w = tl.load(expert_start + at, mask=(expert[:, None] < NUM_EXPERTS) & exists, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")  # tf32 would change the chosen set
    place = partial + (split.to(tl.int64) * num_rows + row[:, None]) * NUM_EXPERTS + expert[None, :]
    tl.store(place, total, mask=(row[:, None] < num_rows) & (expert[None, :] < NUM_EXPERTS))


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
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    GROUPS_POW2: tl.constexpr,
    SIZE_POW2: tl.constexpr,
    K_POW2: tl.constexpr,
) -> None:
    """One row: partial [SPLITS, T, E] -> ids [T, K] int32, weights [T, K] fp32."""
    await_previous()
    LOWEST: tl.constexpr = -(2**63)  # below every key: a place that is empty or already taken
    NUM_EXPERTS: tl.constexpr = NUM_GROUPS * GROUP_SIZE
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_POW2)
    expert = group[:, None] * GROUP_SIZE + tl.arange(0, SIZE_POW2)[None, :]
    exists = (group[:, None] < NUM_GROUPS) & (tl.arange(0, SIZE_POW2)[None, :] < GROUP_SIZE)

    logit = tl.zeros((GROUPS_POW2, SIZE_POW2), tl.float32)
    for split in tl.static_range(SPLITS):
        logit += tl.load(partial + (split * num_rows + row) * NUM_EXPERTS + expert, mask=exists, other=0.0)
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
        # Sixteen rows a program whatever there are: a prompt then reads the weights out of L2 more often.
        constants = logits_constants(1 if native.is_batch_invariant() else num_rows, *weight.shape)
        partial = torch.empty(SPLITS, num_rows, num_experts, dtype=torch.float32, device=hidden.device)
        grid = (-(-num_rows // constants["BLOCK_ROWS"]), -(-num_experts // BLOCK_EXPERTS), SPLITS)
        partial_logits_kernel[grid](hidden, weight, partial, num_rows, **constants, **LOGITS_OPTIONS)
        choose_kernel[(num_rows,)](
            *(partial, bias, ids, weights, shape.scale, num_rows),
            **choose_constants(num_experts, shape),
            **CHOOSE_OPTIONS,
        )
    return ids, weights


@cache
def logits_constants(num_rows: int, num_experts: int, width: int) -> dict[str, int]:
    """What `partial_logits_kernel` is compiled with. Sixty-four rows a program where there are as many."""
    return {
        "WIDTH": width,
        "SPLIT_WIDTH": triton.cdiv(width, SPLITS),
        "NUM_EXPERTS": num_experts,
        "BLOCK_ROWS": 16 if num_rows <= 64 else 64,
        "BLOCK_EXPERTS": BLOCK_EXPERTS,
        "BLOCK_WIDTH": BLOCK_WIDTH,
    }


@cache
def choose_constants(num_experts: int, shape: GateShape) -> dict[str, int | bool]:
    """What `choose_kernel` is compiled with."""
    group_size = num_experts // shape.num_expert_groups
    return {
        "SPLITS": SPLITS,
        "NUM_GROUPS": shape.num_expert_groups,
        "GROUP_SIZE": group_size,
        "TOPK_GROUPS": shape.topk_groups,
        "TOP_K": shape.top_k,
        "NORMALISE": shape.normalise,
        "GROUPS_POW2": triton.next_power_of_2(shape.num_expert_groups),
        "SIZE_POW2": triton.next_power_of_2(group_size),
        "K_POW2": triton.next_power_of_2(shape.top_k),
    }
