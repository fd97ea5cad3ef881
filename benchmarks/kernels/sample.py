"""Choosing tokens: greedily, from the whole vocabulary, and among the likeliest as AntAngelMed recommends.

python -m benchmarks.kernels.sample [--json | --floor H20]
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.kernels.timing import Case, report
from kernels.sample import MIN_TEMPERATURE, DrawSettings, choose_tokens, reference

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "all": {},
    "top-20": {"top_k": 20, "top_p": 0.95},
    "nucleus": {"top_p": 0.95},
    "flat": {"top_p": 0.95, "temperature": 3.0},
}


def case(
    name: str, num_rows: int, vocab_size: int, *, top_k: int = 0, top_p: float = 1.0, temperature: float = 0.6
) -> Case:
    """Logits of a spread that leaves a nucleus of some hundred tokens at a temperature of 0.6."""
    logits = torch.randn(num_rows, vocab_size) * 3
    settings = DrawSettings(
        temperature=torch.full((num_rows,), temperature),
        top_k=torch.full((num_rows,), top_k),
        top_p=torch.full((num_rows,), top_p, dtype=torch.float64),
        min_p=torch.zeros(num_rows),
        points=torch.rand(num_rows, dtype=torch.float64),
    )
    whole = DrawSettings(
        temperature=settings.temperature.clamp_min(MIN_TEMPERATURE),
        top_k=settings.top_k if top_k else torch.full((num_rows,), vocab_size),
        top_p=settings.top_p,
        min_p=settings.min_p,
        points=settings.points,
    )
    return Case(
        name=f"choose {name} {num_rows} x {vocab_size}",
        run=lambda: choose_tokens(logits, settings),
        num_bytes=logits.nbytes,
        num_flop=60 * logits.numel(),
        rival=lambda: reference.draw_tokens(logits, whole),
    )


def cases() -> list[Case]:
    """The reference shape's vocabulary and AntAngelMed's."""
    return [
        case(name, num_rows, vocab_size, **settings)
        for vocab_size in (16_384, 157_184)
        for num_rows in (1, 32, 128)
        for name, settings in KINDS.items()
    ]


if __name__ == "__main__":
    report(cases)
