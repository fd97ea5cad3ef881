"""Linear layers and experts against fp64, in bf16 and in both FP8 formats."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu import exact
from benchmarks.gpu.check import Check, Sizes
from kernels.grouped_swiglu import (
    PackedExperts,
    allocate_experts,
    allocate_fp8_experts,
    fill_expert,
    fill_fp8_expert,
)
from kernels.grouped_swiglu import grouped_swiglu as run_experts
from kernels.linear import linear as run_linear
from kernels.linear import pack_fp8_weight, pack_weight
from kernels.permute import sort_by_expert
from kernels.quantise.formats import Scaling

_LINEAR, _EXPERTS = 0.01, 0.05  # inner values at the edge of two e4m3 numbers may fall to either side


def linear(sizes: Sizes) -> Iterator[Check]:
    """One row, which is a decode, and several."""
    for scaling in Scaling:
        weight, scale = _weight(sizes.inner, sizes.hidden, scaling)
        packed = pack_weight(weight) if scale is None else pack_fp8_weight(weight, scale, torch.bfloat16)
        for rows in (1, (sizes.rows + 7) // 8, sizes.rows):
            x = torch.randn(rows, sizes.hidden).to(torch.bfloat16)
            what = f"{rows} rows, {_name(scaling)}"
            yield Check.of(what, run_linear(x, packed), exact.linear(x, weight, scale), _LINEAR)


def grouped_swiglu(sizes: Sizes) -> Iterator[Check]:
    """Experts of uneven loads, and of few rows; rows that lie sorted, and rows that are read in an order."""
    for counts in ([0, 1, sizes.rows, 3, 0], [0, 1, 0, 3, 0]):
        widths = ((sizes.inner, sizes.hidden), (sizes.inner, sizes.hidden), (sizes.hidden, sizes.inner))
        for scaling in Scaling:
            weights = [[_weight(*width, scaling) for width in widths] for _ in counts]
            packed, what = _packed(weights, sizes, scaling), f"{sum(counts)} rows, {_name(scaling)}"
            rows, per_expert = torch.randn(sum(counts), sizes.hidden).to(torch.bfloat16), torch.tensor(counts).int()
            truth = [exact.swiglu(x, *parts) for x, parts in zip(rows.split(counts), weights, strict=True) if len(x)]
            yield Check.of(what, run_experts(rows, per_expert, packed), torch.cat(truth), _EXPERTS)
            ids = torch.arange(len(counts)).repeat_interleave(per_expert).int().flip(0)
            copies = sort_by_expert(rows.flip(0).contiguous(), ids[:, None].contiguous(), len(counts))
            ours = run_experts(copies.rows, copies.counts, packed, copies.order)[copies.places.flatten()].flip(0)
            yield Check.of(f"{what}, in an order", ours, torch.cat(truth), _EXPERTS)


def _packed(weights: list[list[exact.Stored]], sizes: Sizes, scaling: Scaling) -> PackedExperts:
    device = torch.get_default_device()
    if scaling is Scaling.NONE:
        experts = allocate_experts(len(weights), sizes.hidden, sizes.inner, torch.bfloat16, device)
    else:
        experts = allocate_fp8_experts(len(weights), sizes.hidden, sizes.inner, torch.bfloat16, scaling, device)
    for index, ((gate, *gate_scale), (up, *up_scale), (down, *down_scale)) in enumerate(weights):
        if scaling is Scaling.NONE:
            fill_expert(experts, index, gate, up, down)
        else:
            scales = [scale for scale in (*gate_scale, *up_scale, *down_scale) if scale is not None]
            fill_fp8_expert(experts, index, (gate, up, down), (scales[0], scales[1], scales[2]))
    return experts


def _weight(num_out: int, num_in: int, scaling: Scaling) -> exact.Stored:
    """A matrix that keeps a row's size."""
    if scaling is Scaling.NONE:
        return (torch.randn(num_out, num_in) * num_in**-0.5).to(torch.bfloat16), None
    values = (torch.randn(num_out, num_in) * 64).clamp(-448, 448).to(torch.float8_e4m3fn)
    return values, (0.5 + torch.rand(scaling.weight_shape(num_out, num_in))) * num_in**-0.5 / 64


def _name(scaling: Scaling) -> str:
    return "bf16" if scaling is Scaling.NONE else f"fp8 {scaling.value}"
