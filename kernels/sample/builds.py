"""The draw from AntAngelMed's vocabulary (Ling's, one for all sizes), and the acceptance of drafts."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.sample.triton_kernel import (
    ACCEPT_AT_ONCE,
    ACCEPT_OPTIONS,
    OPTIONS,
    OTHERS,
    accept_kernel,
    candidates_kernel,
    draw_constants,
    draw_kernel,
)

_VOCAB_SIZE = 157184
_SETTINGS = {"temperature": "*fp32", "top_k": "*i64", "top_p": "*fp64", "min_p": "*fp32"}


def builds() -> Iterator[Build]:
    """Logits are fp32."""
    yield Build(
        name="sample candidates, 157184",
        kernel=candidates_kernel,
        arguments={
            **{"logits": "*fp32", **_SETTINGS, "best_out": "*fp32", "total_out": "*i64"},
            **{"count_out": "*i32", "candidates": "*i32"},
        },
        constants=draw_constants(_VOCAB_SIZE),
        options=OPTIONS,
    )
    yield Build(
        name="sample draw, 157184",
        kernel=draw_kernel,
        arguments={
            **{"logits": "*fp32", **_SETTINGS, "points": "*fp64", "bests": "*fp32", "totals": "*i64"},
            **{"counts": "*i32", "candidates": "*i32", "ids": "*i64"},
        },
        constants={**draw_constants(_VOCAB_SIZE), "OTHERS": OTHERS},
        options=OPTIONS,
    )
    yield Build(
        name="sample accept",
        kernel=accept_kernel,
        arguments={"token_ids": "*i64", "draft_ids": "*i32", "row_starts": "*i32", "accepted": "*i32"},
        constants={"AT_ONCE": ACCEPT_AT_ONCE},
        options=ACCEPT_OPTIONS,
    )
