"""RMSNorm with the residual, from one row to a prefill.

python -m benchmarks.kernels.rms_norm [--json]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.rms_norm import add_rms_norm, reference


def case(num_rows: int, width: int = 512) -> Case:
    """One norm in bf16: two reads, two writes."""
    residual, x = (torch.zeros(num_rows, width, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.ones(width, dtype=torch.bfloat16)
    return Case(
        name=f"add_rms_norm {num_rows} x {width}",
        run=lambda: add_rms_norm(residual, x, weight, 1e-6),
        num_bytes=4 * x.nbytes,
        num_flop=5 * x.numel(),
        rival=lambda: reference.add_rms_norm(residual, x, weight, 1e-6),
    )


if __name__ == "__main__":
    report([case(num_rows) for num_rows in (1, 32, 2048)])
