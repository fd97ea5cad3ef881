"""The norms of AntAngelMed (Ling-flash) and Ling-mini."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.quantise.formats import Scaling
from kernels.rms_norm.triton_kernel import constants, options, rms_norm_kernel


def builds() -> Iterator[Build]:
    """Every width, with and without the residual sum, to bf16 and to both FP8 formats."""
    for width in (4096, 2048):
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
