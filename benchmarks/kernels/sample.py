"""Drawing tokens: from the whole vocabulary, and among the likeliest as AntAngelMed recommends.

python -m benchmarks.kernels.sample [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.sample import DrawSettings, draw_tokens, reference


def case(name: str, num_rows: int, vocab_size: int, *, top_k: int, top_p: float) -> Case:
    """Logits of a spread that leaves a nucleus of some hundred tokens."""
    logits = torch.randn(num_rows, vocab_size) * 3
    settings = DrawSettings(
        temperature=torch.full((num_rows,), 0.6),
        top_k=torch.full((num_rows,), top_k),
        top_p=torch.full((num_rows,), top_p, dtype=torch.float64),
        min_p=torch.zeros(num_rows),
        points=torch.rand(num_rows, dtype=torch.float64),
    )
    whole = DrawSettings(
        temperature=settings.temperature,
        top_k=settings.top_k if top_k else torch.full((num_rows,), vocab_size),
        top_p=settings.top_p,
        min_p=settings.min_p,
        points=settings.points,
    )
    return Case(
        name=f"draw {name} {num_rows} x {vocab_size}",
        run=lambda: draw_tokens(logits, settings),
        num_bytes=logits.nbytes,
        num_flop=30 * logits.numel(),
        rival=lambda: reference.draw_tokens(logits, whole),
    )


def cases() -> list[Case]:
    """The reference shape's vocabulary and AntAngelMed's."""
    return [
        case(name, num_rows, vocab_size, top_k=top_k, top_p=top_p)
        for vocab_size in (16_384, 157_184)
        for num_rows in (1, 32)
        for name, top_k, top_p in (("all", 0, 1.0), ("top-20", 20, 0.95), ("nucleus", 0, 0.95))
    ]


if __name__ == "__main__":
    report(cases)
