"""The gates of AntAngelMed (Ling-flash) and Ling-mini."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.gate import GateShape
from kernels.gate.triton_kernel import (
    CHOOSE_OPTIONS,
    LOGITS_OPTIONS,
    choose_constants,
    choose_kernel,
    logits_constants,
    partial_logits_kernel,
)

_SHAPE = GateShape(num_expert_groups=8, topk_groups=4, top_k=8, scale=2.5, normalise=True)
_WIDTHS = {"flash": 4096, "mini": 2048}
_FEW, _MANY = 16, 4096


def builds() -> Iterator[Build]:
    """Both kernels for both models; hidden states are bf16."""
    for model, width in _WIDTHS.items():
        for rows in (_FEW, _MANY):
            yield Build(
                name=f"gate logits, {model}, {rows} rows",
                kernel=partial_logits_kernel,
                arguments={"hidden": "*bf16", "weight": "*fp32", "partial": "*fp32", "num_rows": "i32"},
                constants=logits_constants(rows, 256, width),
                options=LOGITS_OPTIONS,
            )
    yield Build(
        name="gate choice",
        kernel=choose_kernel,
        arguments={
            **{"partial": "*fp32", "bias": "*fp32", "ids": "*i32", "weights": "*fp32"},
            **{"scale": "fp32", "num_rows": "i32"},
        },
        constants=choose_constants(256, _SHAPE),
        options=CHOOSE_OPTIONS,
    )
