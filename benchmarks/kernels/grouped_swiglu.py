"""The experts of the reference shape: 64 of width 256, eight a row.

python -m benchmarks.kernels.grouped_swiglu [--json]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.grouped_swiglu import PackedExperts, allocate_experts, fill_expert, grouped_swiglu

NUM_EXPERTS, TOP_K, HIDDEN, INNER = 64, 8, 512, 256


def cases() -> list[Case]:
    """From one row, which reads eight experts, to a prefill, which reads all."""
    experts = allocate_experts(NUM_EXPERTS, HIDDEN, INNER, torch.bfloat16)
    for index in range(NUM_EXPERTS):
        gate, up, down = (torch.randn(INNER, HIDDEN).to(torch.bfloat16) for _ in range(3))
        fill_expert(experts, index, gate, up, down.T.contiguous())
    return [case(experts, num_rows) for num_rows in (1, 4, 32, 256, 2048)]


def case(experts: PackedExperts, num_rows: int) -> Case:
    """`num_rows` rows whose experts are drawn evenly."""
    chosen = torch.cat([torch.randperm(NUM_EXPERTS)[:TOP_K] for _ in range(num_rows)])
    counts = torch.bincount(chosen, minlength=NUM_EXPERTS).int()
    rows = torch.randn(num_rows * TOP_K, HIDDEN).to(torch.bfloat16)
    return Case(
        name=f"experts, {num_rows} rows x {TOP_K}",
        run=lambda: grouped_swiglu(rows, counts, experts),
        num_bytes=2 * 3 * HIDDEN * INNER * int((counts > 0).sum()),
        num_flop=6 * len(rows) * HIDDEN * INNER,
    )


if __name__ == "__main__":
    report(cases())
