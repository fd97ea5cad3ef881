"""The gate on a GPU: logits split over H, then one warp a row from the first sigmoid to the last weight.

Bytes: E * H * 4 of weights for every BLOCK_ROWS rows, from the second on out of L2; T * H * 2 of hidden for every
BLOCK_EXPERTS experts; SPLITS * T * E * 8 of partial sums written and read; T * K * 8 out. FLOP: 6 * T * E * H on the
tensor cores and about 6 * E * H for every BLOCK_ROWS rows to split the weights; T * E * (8 + K).
E = 256, H = 4096, one row: 4.2 MB of weights, 1.05 us at 4.0 TB/s (H20 datasheet), and two launches; 2048 rows: 12.9
GFLOP, 13 us at 989 TFLOP/s (H100 datasheet).
A logit's order of additions depends on the tile and this on the number of rows, in batch-invariant mode on nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.gate.choice import CHOOSE_OPTIONS, choose, choose_constants
from kernels.gate.logits import partial_logits
from kernels.gate.ordered_choice import ordered_choice
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.permute import SortedCopies

if TYPE_CHECKING:
    from kernels.gate import GateShape


@launched
@triton.jit(do_not_specialize=["num_rows"])
def choose_kernel(
    partial: tl.tensor,
    bias: tl.tensor,
    is_live: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    num_rows: tl.tensor,
    HAS_LIVE: tl.constexpr,
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
    """One row: partial [SPLITS, T, E] -> ids [T, K] int32, weights [T, K] fp32; HAS_LIVE: is_live [T] says of whom."""
    await_previous()
    row = tl.program_id(0)
    chosen, chosen_weights, _ = choose(
        *(partial, bias, row, scale, num_rows, SPLITS, SPLITS_POW2, NUM_GROUPS, GROUP_SIZE),
        *(TOPK_GROUPS, TOP_K, NORMALISE, GROUPS_POW2, SIZE_POW2, K_POW2),
    )
    if HAS_LIVE:
        chosen = tl.where(tl.load(is_live + row), chosen, -1)
    slot = tl.arange(0, K_POW2)
    tl.store(ids + row * TOP_K + slot, chosen, mask=slot < TOP_K)
    tl.store(weights + row * TOP_K + slot, chosen_weights, mask=slot < TOP_K)


def sigmoid_group_topk(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shape: GateShape, is_live: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.gate.sigmoid_group_topk`; weight is [E, H]."""
    num_rows, num_experts = hidden.shape[0], weight.shape[0]
    ids = torch.empty(num_rows, shape.top_k, dtype=torch.int32, device=hidden.device)
    weights = torch.empty(num_rows, shape.top_k, dtype=torch.float32, device=hidden.device)
    if num_rows:
        partial = partial_logits(hidden, weight)
        assert partial.numel() < 2**31, f"{num_rows} rows: the kernel of the choice counts in int32"
        choose_kernel[(num_rows,)](
            *(partial, bias, ids if is_live is None else is_live, ids, weights, shape.scale, num_rows),
            **choose_constants(partial.shape[0], num_experts, shape, is_live is not None),
            **CHOOSE_OPTIONS,
        )
    return ids, weights


def choose_and_sort(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shape: GateShape,
    totals: torch.Tensor,
    is_live: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, SortedCopies | None]:
    """See `kernels.gate.choose_and_sort`; weight is [E, H]."""
    if hidden.shape[0] == 1:
        return ordered_choice(hidden, partial_logits(hidden, weight), bias, shape, totals, is_live)
    return *sigmoid_group_topk(hidden, weight, bias, shape, is_live), None
