"""Activations that are quantised by themselves: what attention yields, and the inputs of the down product."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.quantise.formats import Scaling
from kernels.quantise.triton_kernel import constants, options, quantise_kernel


def builds() -> Iterator[Build]:
    """Widths of AntAngelMed (Ling-flash) and Ling-mini, both formats."""
    for width in (4096, 2048, 1024, 512):
        for scaling in (Scaling.BLOCKS, Scaling.CHANNELS):
            yield Build(
                name=f"quantise, {width}, {scaling.value}",
                kernel=quantise_kernel,
                arguments={"x": "*bf16", "values": "*fp8e4nv", "scales": "*fp32"},
                constants=constants(width, scaling),
                options=options(width),
            )
