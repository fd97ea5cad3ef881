"""Sorting rows by expert, and the weighted sum back.

python -m benchmarks.kernels.permute [--json]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.permute import combine_rows, expert_order, gather_rows, reference

NUM_EXPERTS, TOP_K, HIDDEN = 64, 8, 512


def cases(num_rows: int) -> list[Case]:
    """There, with the sort, and back."""
    ids = torch.stack([torch.randperm(NUM_EXPERTS)[:TOP_K] for _ in range(num_rows)]).int()
    hidden = torch.randn(num_rows, HIDDEN).to(torch.bfloat16)
    _, places = expert_order(ids, NUM_EXPERTS)
    rows, weights = gather_rows(hidden, places, places.numel()), torch.rand(num_rows, TOP_K)

    def there() -> torch.Tensor:
        return gather_rows(hidden, expert_order(ids, NUM_EXPERTS)[1], ids.numel())

    return [
        Case(name=f"gather {num_rows} rows x {TOP_K}", run=there, num_bytes=hidden.nbytes + rows.nbytes),
        Case(
            name=f"combine {num_rows} rows x {TOP_K}",
            run=lambda: combine_rows(rows, places, weights),
            num_bytes=hidden.nbytes + rows.nbytes,
            num_flop=2 * rows.numel(),
            rival=lambda: reference.combine_rows(rows, places, weights),
        ),
    ]


if __name__ == "__main__":
    report([case for num_rows in (1, 32, 2048) for case in cases(num_rows)])
