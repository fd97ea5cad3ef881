"""The norms of AntAngelMed (Ling-flash) and Ling-mini."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.quantise.formats import Scaling
from kernels.rms_norm.triton_kernel import constants, options, rms_norm_kernel


def builds() -> Iterator[Build]:
    """Every width, with and without the residual sum, to bf16 and to both FP8 formats."""
    for width in (4096, 2048):
        for add in (False, True):
            for scaling in Scaling:
                out = "*bf16" if scaling is Scaling.NONE else "*fp8e4nv"
                yield Build(
                    name=f"rms_norm{' after a sum' if add else ''}, {width}, scales: {scaling.value}",
                    kernel=rms_norm_kernel,
                    arguments={
                        **{"residual": "*bf16", "x": "*bf16", "weight": "*bf16", "out": out},
                        **{"scales": out if scaling is Scaling.NONE else "*fp32", "eps": "fp32"},
                    },
                    constants=constants(width, scaling, add=add),
                    options=options(width),
                )
