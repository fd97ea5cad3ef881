"""Linear layers, from one row to a prefill: of the reference shape in bf16, and on a GPU AntAngelMed's, in FP8 too.

python -m benchmarks.kernels.linear [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.linear import linear, pack_fp8_weight, pack_weight
from kernels.quantise.formats import Scaling

REFERENCE = ((768, 512), (16384, 512))
ANTANGELMED = ((5120, 4096), (4096, 4096), (157184, 4096))  # QKV, dense, head


def case(num_rows: int, num_out: int, num_in: int) -> Case:
    """One product in bf16."""
    weight = torch.randn(num_out, num_in).to(torch.bfloat16)
    x = torch.randn(num_rows, num_in).to(torch.bfloat16)
    packed = pack_weight(weight)
    return Case(
        name=f"linear {num_rows} x {num_in} x {num_out}",
        run=lambda: linear(x, packed),
        num_bytes=2 * (num_out * num_in + num_rows * (num_in + num_out)),
        num_flop=2 * num_rows * num_out * num_in,
        operands=torch.bfloat16,
        rival=lambda: torch.nn.functional.linear(x, weight),
    )


def fp8_case(num_rows: int, num_out: int, num_in: int, scaling: Scaling) -> Case:
    """One product in FP8, the quantisation of its bf16 rows included."""
    weight = torch.randn(num_out, num_in).to(torch.float8_e4m3fn)
    x = torch.randn(num_rows, num_in).to(torch.bfloat16)
    packed = pack_fp8_weight(weight, torch.rand(scaling.weight_shape(num_out, num_in)), torch.bfloat16)
    return Case(
        name=f"linear {num_rows} x {num_in} x {num_out} fp8 {scaling.value}",
        run=lambda: linear(x, packed),
        num_bytes=num_out * num_in + 2 * num_rows * (num_in + num_out),
        num_flop=2 * num_rows * num_out * num_in,
        operands=torch.float8_e4m3fn,
    )


def cases() -> list[Case]:
    """What this machine is for."""
    if not torch.cuda.is_available():
        return [case(rows, *shape) for shape in REFERENCE for rows in (1, 8, 32, 256, 2048)]
    rows_of = (1, 8, 32, 128, 4096)
    plain = [case(rows, *shape) for shape in ANTANGELMED for rows in rows_of]
    formats = (Scaling.BLOCKS, Scaling.CHANNELS)
    return plain + [fp8_case(rows, *shape, f) for shape in ANTANGELMED[:2] for f in formats for rows in rows_of]


if __name__ == "__main__":
    report(cases)
