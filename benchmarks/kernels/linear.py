"""Linear layers of the reference shape, from one row to a prefill.

python -m benchmarks.kernels.linear [--json]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.linear import linear, pack_weight


def case(num_rows: int, num_out: int, num_in: int) -> Case:
    """One product in bf16."""
    weight = torch.randn(num_out, num_in).to(torch.bfloat16)
    x = torch.randn(num_rows, num_in).to(torch.bfloat16)
    packed = pack_weight(weight)
    return Case(
        name=f"linear {num_rows} x {num_in} x {num_out}",
        run=lambda: linear(x, packed),
        num_bytes=2 * num_out * num_in,
        num_flop=2 * num_rows * num_out * num_in,
        rival=lambda: torch.nn.functional.linear(x, weight),
    )


if __name__ == "__main__":
    report([case(rows, *shape) for shape in ((768, 512), (16384, 512)) for rows in (1, 8, 32, 256, 2048)])
