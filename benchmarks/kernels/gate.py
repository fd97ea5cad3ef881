"""The gate of the reference shape and of the real router.

python -m benchmarks.kernels.gate [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.gate import GateShape, reference, sigmoid_group_topk
from kernels.linear import pack_weight

SHAPE = GateShape(num_expert_groups=8, topk_groups=4, top_k=8, scale=2.5, normalise=True)


def case(num_rows: int, num_experts: int, hidden_size: int) -> Case:
    """Scores and the choice; on a GPU three products of bf16 make one of fp32."""
    weight, bias = torch.randn(num_experts, hidden_size), torch.zeros(num_experts)
    hidden, packed = torch.randn(num_rows, hidden_size).to(torch.bfloat16), pack_weight(weight)
    return Case(
        name=f"gate {num_rows} x {hidden_size} to {num_experts}",
        run=lambda: sigmoid_group_topk(hidden, packed, bias, SHAPE),
        num_bytes=weight.nbytes + hidden.nbytes + 8 * num_rows * SHAPE.top_k,
        num_flop=6 * num_rows * weight.numel(),
        operands=torch.bfloat16,
        rival=lambda: reference.choose(hidden.float() @ weight.T, bias, SHAPE),
    )


def cases() -> list[Case]:
    """One row, decodes, prefills."""
    return [case(rows, *shape) for shape in ((64, 512), (256, 4096)) for rows in (1, 32, 128, 2048, 8192)]


if __name__ == "__main__":
    report(cases)
