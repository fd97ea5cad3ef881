"""The norms of AntAngelMed (Ling-flash) and Ling-mini."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.launch import loads_first
from kernels.quantise.formats import Scaling
from kernels.rms_norm.triton_kernel import (
    answers_constants,
    answers_norm_kernel,
    constants,
    options,
    rms_norm_kernel,
)

_TOP_K = 8


def builds() -> Iterator[Build]:
    """Every width, with and without the residual sum, to bf16 and to both FP8 formats."""
    for width in (4096, 2048):
        for scaling in Scaling:
            out = "*bf16" if scaling is Scaling.NONE else "*fp8e4nv"
            yield Build(
                name=f"rms_norm after the experts' sum, {width}, scales: {scaling.value}",
                kernel=answers_norm_kernel,
                arguments={
                    **{"residual": "*bf16", "answers": "*bf16", "source_rows": "*i32", "shares": "*fp32"},
                    **{"plus": "*bf16", "weight": "*bf16", "out": out},
                    **{"scales": out if scaling is Scaling.NONE else "*fp32", "eps": "fp32"},
                },
                constants=answers_constants(width, _TOP_K, scaling, has_plus=True),
                options=loads_first(options(width)),
            )
        for add, keep in ((False, False), (True, False), (True, True)):
            for scaling in Scaling:
                if keep and scaling is Scaling.NONE:
                    continue
                out = "*bf16" if scaling is Scaling.NONE else "*fp8e4nv"
                kind = f"{' after a sum' if add else ''}{' and kept' if keep else ''}"
                yield Build(
                    name=f"rms_norm{kind}, {width}, scales: {scaling.value}",
                    kernel=rms_norm_kernel,
                    arguments={
                        **{"residual": "*bf16", "x": "*bf16", "weight": "*bf16", "out": out},
                        **{"scales": out if scaling is Scaling.NONE else "*fp32"},
                        **{"plain": "*bf16" if keep else out, "eps": "fp32"},
                    },
                    constants=constants(width, scaling, add=add, keep=keep),
                    options=options(width),
                )
