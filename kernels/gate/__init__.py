"""The router's gate: sigmoid scores, groups of experts, the best K of the best groups.

Bytes: E * H fp32 weights once per call; FLOP: 2 * T * E * H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels import native
from kernels.gate import cpu, reference
from kernels.linear import Layout, PackedWeight, linear
from kernels.permute import SortedCopies


@dataclass(frozen=True, slots=True, kw_only=True)
class GateShape:
    """How experts are chosen: of `num_expert_groups` groups keep `topk_groups`, of their experts `top_k`."""

    num_expert_groups: int
    topk_groups: int
    top_k: int
    scale: float  # routed scaling factor
    normalise: bool  # weights of a row sum to `scale`


def sigmoid_group_topk(
    hidden: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor,
    shape: GateShape,
    is_live: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick K experts per row by group-limited sigmoid top-k.

    hidden [T, H] any float; weight [E, H] packed fp32; bias [E] fp32, for the choice alone. Returns ids [T, K] int32,
    best first, and weights [T, K] fp32. A group's score is the sum of its two best biased scores. Ties go to the
    lower id. T = 0 is valid. fp32 throughout: bf16 scores change the chosen set. Source: model-spec §2.6.
    `is_live` [T] bool: the ids of the other rows are -1, whose weights do not count.
    """
    _check(hidden, weight, bias, shape)
    if native.runs_triton(hidden):
        from kernels.gate import triton_kernel  # Triton is imported where it runs

        return triton_kernel.sigmoid_group_topk(hidden, weight.data, bias, shape, is_live)
    logits = linear(hidden.float(), weight)
    choose = reference.choose if weight.layout is Layout.PLAIN else cpu.choose
    ids, weights = choose(logits, bias, shape)
    return ids if is_live is None else torch.where(is_live[:, None], ids, -1), weights


def choose_and_sort(
    hidden: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor,
    shape: GateShape,
    totals: torch.Tensor,
    is_live: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, SortedCopies | None]:
    """`sigmoid_group_topk`, and where that is one kernel less, `sort_by_expert` of hidden by what it chose.

    `totals` [E] int64 then grow by the counts; None: nothing was sorted nor counted.
    """
    _check(hidden, weight, bias, shape)
    if native.runs_triton(hidden):
        from kernels.gate import triton_kernel

        return triton_kernel.choose_and_sort(hidden, weight.data, bias, shape, totals, is_live)
    return *sigmoid_group_topk(hidden, weight, bias, shape, is_live), None


def _check(hidden: torch.Tensor, weight: PackedWeight, bias: torch.Tensor, shape: GateShape) -> None:
    num_experts = weight.num_out
    assert hidden.is_contiguous() and hidden.shape[1] == weight.num_in, f"hidden is {list(hidden.shape)}"
    assert weight.dtype == torch.float32, f"the gate's weight is {weight.dtype}"
    assert bias.shape == (num_experts,) and bias.dtype == torch.float32, f"bias is {bias.dtype} {list(bias.shape)}"
    assert num_experts % shape.num_expert_groups == 0, f"{num_experts} experts in {shape.num_expert_groups} groups"
