"""RMSNorm with the residual, from one row to a prefill, to bf16 and to FP8.

python -m benchmarks.kernels.rms_norm [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.permute import Answers
from kernels.permute.reference import combine_rows
from kernels.quantise.formats import Scaling
from kernels.rms_norm import add_rms_norm, reference, rms_norm_quantised


def case(num_rows: int, width: int) -> Case:
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


def quantised_case(num_rows: int, width: int, scaling: Scaling) -> Case:
    """Two reads and a write in bf16, a write in e4m3, and the scales."""
    residual, x = (torch.zeros(num_rows, width, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.ones(width, dtype=torch.bfloat16)
    num_scales = num_rows * (width // 128 if scaling is Scaling.BLOCKS else 1)
    return Case(
        name=f"rms_norm_quantised {num_rows} x {width} {scaling.value}",
        run=lambda: rms_norm_quantised(x, weight, 1e-6, scaling, residual),
        num_bytes=3 * x.nbytes + x.numel() + 4 * num_scales,
        num_flop=9 * x.numel(),
        rival=lambda: reference.rms_norm_quantised(x, weight, 1e-6, scaling, residual),
    )


def answers_case(num_rows: int, width: int) -> Case:
    """Ten reads in bf16, of eight answers, the shared expert's and the residual; writes as of `quantised_case`."""
    residual, shared = (torch.zeros(num_rows, width, dtype=torch.bfloat16) for _ in range(2))
    weight, rows = torch.ones(width, dtype=torch.bfloat16), torch.zeros(8 * num_rows, width, dtype=torch.bfloat16)
    places = torch.randperm(8 * num_rows).int().view(num_rows, 8)
    answers = Answers(rows, places, torch.rand(num_rows, 8), shared)
    return Case(
        name=f"experts' sum and rms_norm_quantised {num_rows} x {width} blocks",
        run=lambda: rms_norm_quantised(answers, weight, 1e-6, Scaling.BLOCKS, residual),
        num_bytes=rows.nbytes + 3 * shared.nbytes + shared.numel() + num_rows * (64 + width // 32),
        num_flop=(2 * 8 + 9) * shared.numel(),
        rival=lambda: reference.rms_norm_quantised(
            combine_rows(rows, places, answers.weights, shared), weight, 1e-6, Scaling.BLOCKS, residual
        ),
    )


def cases() -> list[Case]:
    """The reference shape's width and AntAngelMed's."""
    plain = [case(num_rows, width) for width in (512, 4096) for num_rows in (1, 32, 2048)]
    formats = (Scaling.BLOCKS, Scaling.CHANNELS)
    quantised = [quantised_case(rows, 4096, scaling) for rows in (1, 32, 2048) for scaling in formats]
    return plain + quantised + [answers_case(rows, 4096) for rows in (1, 32, 128, 256)]


if __name__ == "__main__":
    report(cases)
