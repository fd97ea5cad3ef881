"""Activations to FP8, from one row to a prefill.

python -m benchmarks.kernels.quantise [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.quantise import quantise_blocks, quantise_tokens, reference


def case(num_rows: int, width: int, *, per_token: bool) -> Case:
    """One read in bf16, one write in e4m3, and the scales."""
    x = torch.randn(num_rows, width).to(torch.bfloat16)
    ours, theirs = (quantise_tokens, reference.quantise_tokens) if per_token else (quantise_blocks, None)
    return Case(
        name=f"quantise {num_rows} x {width} {'per token' if per_token else 'blocks'}",
        run=lambda: ours(x),
        num_bytes=3 * x.numel() + 4 * num_rows * (1 if per_token else -(-width // 128)),
        num_flop=3 * x.numel(),
        rival=lambda: (theirs or reference.quantise_blocks)(x),
    )


def cases() -> list[Case]:
    """Both formats at AntAngelMed's width."""
    return [case(rows, 4096, per_token=kind) for kind in (False, True) for rows in (1, 32, 2048)]


if __name__ == "__main__":
    report(cases)
