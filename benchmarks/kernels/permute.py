"""Sorting rows by expert, and the weighted sum back.

python -m benchmarks.kernels.permute [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.permute import combine_rows, expert_order, gather_rows, reference, sort_by_expert

TOP_K = 8


def round_trip(num_rows: int, num_experts: int, hidden_size: int) -> list[Case]:
    """There, sort and copies, and back."""
    ids = torch.rand(num_rows, num_experts).argsort(1)[:, :TOP_K].int().contiguous()
    hidden = torch.randn(num_rows, hidden_size).to(torch.bfloat16)
    _, places = expert_order(ids, num_experts)
    rows, weights = gather_rows(hidden, places, places.numel()), torch.rand(num_rows, TOP_K)
    totals = torch.zeros(num_experts, dtype=torch.int64)
    copied_bytes = hidden.nbytes + rows.nbytes if sort_by_expert(hidden, ids, num_experts).order is None else ids.nbytes
    return [
        Case(
            name=f"expert_order {num_rows} x {TOP_K} of {num_experts}",
            run=lambda: expert_order(ids, num_experts),
            num_bytes=2 * ids.nbytes + 4 * num_experts,
            rival=lambda: reference.expert_order(ids, num_experts),
        ),
        Case(
            name=f"sort_by_expert and its totals {num_rows} x {hidden_size} x {TOP_K} of {num_experts}",
            run=lambda: sort_by_expert(hidden, ids, num_experts, totals),
            num_bytes=2 * ids.nbytes + 20 * num_experts + copied_bytes,
        ),
        Case(
            name=f"gather {num_rows} x {hidden_size} x {TOP_K}",
            run=lambda: gather_rows(hidden, places, ids.numel()),
            num_bytes=hidden.nbytes + rows.nbytes + places.nbytes,
            rival=lambda: reference.gather_rows(hidden, places),
        ),
        Case(
            name=f"combine {num_rows} x {hidden_size} x {TOP_K}",
            run=lambda: combine_rows(rows, places, weights),
            num_bytes=hidden.nbytes + rows.nbytes + places.nbytes + weights.nbytes,
            num_flop=2 * rows.numel(),
            rival=lambda: reference.combine_rows(rows, places, weights),
        ),
    ]


def cases() -> list[Case]:
    """The reference shape and AntAngelMed's, from one row to a prefill."""
    shapes = ((64, 512), (256, 4096))
    return [case for shape in shapes for rows in (1, 32, 2048) for case in round_trip(rows, *shape)]


if __name__ == "__main__":
    report(cases)
