"""The experts, from one row to a prefill: the reference shape's, and on a GPU AntAngelMed's, in FP8 too.

python -m benchmarks.kernels.grouped_swiglu [--json | --floor H20]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.kernels.timing import Case, report
from kernels.grouped_swiglu import (
    PackedExperts,
    allocate_experts,
    allocate_fp8_experts,
    fill_expert,
    fill_fp8_expert,
    grouped_swiglu,
)
from kernels.permute import sort_by_expert
from kernels.quantise.formats import Scaling

TOP_K = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Experts of one rank."""

    num_experts: int
    hidden: int
    inner: int


REFERENCE = Shape(num_experts=64, hidden=512, inner=256)
ANTANGELMED = Shape(num_experts=256, hidden=4096, inner=1024)


def random_experts(shape: Shape, scaling: Scaling) -> PackedExperts:
    """Experts whose rows are bf16."""
    sizes = (shape.num_experts, shape.hidden, shape.inner)
    widths = ((shape.inner, shape.hidden), (shape.inner, shape.hidden), (shape.hidden, shape.inner))
    device = torch.get_default_device()
    if scaling is Scaling.NONE:
        experts = allocate_experts(*sizes, torch.bfloat16, device)
    else:
        experts = allocate_fp8_experts(*sizes, torch.bfloat16, scaling, device)
    for index in range(shape.num_experts):
        if scaling is Scaling.NONE:
            gate, up, down = (torch.randn(width).to(torch.bfloat16) for width in widths)
            fill_expert(experts, index, gate, up, down)
        else:
            gate, up, down = (torch.randn(width).to(torch.float8_e4m3fn) for width in widths)
            scales = [torch.rand(scaling.weight_shape(*width)) for width in widths]
            fill_fp8_expert(experts, index, (gate, up, down), (scales[0], scales[1], scales[2]))
    return experts


def case(experts: PackedExperts, num_rows: int, kind: str) -> Case:
    """`num_rows` rows whose experts are drawn evenly."""
    ids = torch.stack([torch.randperm(experts.num_experts)[:TOP_K] for _ in range(num_rows)]).int()
    hidden = torch.randn(num_rows, experts.hidden).to(torch.bfloat16)
    copies = sort_by_expert(hidden, ids, experts.num_experts)
    itemsize = 2 if experts.scales is None else 1
    weights = 3 * experts.hidden * experts.inner
    return Case(
        name=f"experts, {num_rows} rows x {TOP_K} {kind}",
        run=lambda: grouped_swiglu(copies.rows, copies.counts, experts, copies.order),
        num_bytes=itemsize * weights * int((copies.counts > 0).sum()) + copies.rows.nbytes + TOP_K * hidden.nbytes,
        num_flop=2 * ids.numel() * weights,
        operands=torch.bfloat16 if experts.scales is None else torch.float8_e4m3fn,
    )


def cases() -> list[Case]:
    """From one row, which reads eight experts, to a prefill, which reads all."""
    if not torch.cuda.is_available():
        experts = random_experts(REFERENCE, Scaling.NONE)
        return [case(experts, num_rows, "bf16") for num_rows in (1, 4, 32, 256, 2048)]
    made = []
    for scaling in Scaling:
        experts = random_experts(ANTANGELMED, scaling)
        kind = "bf16" if scaling is Scaling.NONE else f"fp8 {scaling.value}"
        made += [case(experts, num_rows, kind) for num_rows in (1, 8, 32, 128, 1024, 8192)]
    return made


if __name__ == "__main__":
    report(cases)
