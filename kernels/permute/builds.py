"""Expert order and rows of AntAngelMed (Ling-flash) and Ling-mini: 256 experts, eight a row."""

from __future__ import annotations

from collections.abc import Iterator

import triton

from kernels.builds import Build
from kernels.permute.triton_kernel import (
    BLOCK,
    BLOCKS_AT_ONCE,
    CHUNK,
    OFFSETS_OPTIONS,
    ORDER_OPTIONS,
    OTHERS,
    ROW_OPTIONS,
    combine_kernel,
    compare_kernel,
    gather_kernel,
    histogram_kernel,
    offsets_kernel,
    place_kernel,
    row_constants,
)

_TOP_K = 8
_IDS = {"ids": "*i32", "num_copies": "i32"}


def builds() -> Iterator[Build]:
    """All experts on one rank, and thirty-two of them on each of eight."""
    for num_experts in (256, 32):
        yield from _order_builds(num_experts)
    for width in (4096, 2048):
        # A copy per expert leaves a rank in bf16; FP8 rows are gathered after they are quantised.
        for kind in ("*bf16", "*fp8e4nv"):
            yield Build(
                name=f"permute gather, {width}, {kind[1:]}",
                kernel=gather_kernel,
                arguments={"hidden": kind, "source_rows": "*i32", "rows": kind},
                constants=row_constants(_TOP_K, width),
                options=ROW_OPTIONS,
            )
        yield Build(
            name=f"permute combine and the shared expert, {width}",
            kernel=combine_kernel,
            arguments={
                **{"rows": "*bf16", "source_rows": "*i32", "weights": "*fp32"},
                **{"plus": "*bf16", "out": "*bf16"},
            },
            constants={"PLUS": True, **row_constants(_TOP_K, width)},
            options=ROW_OPTIONS,
        )


def _order_builds(num_experts: int) -> Iterator[Build]:
    experts = {"NUM_EXPERTS": num_experts}
    powers = {**experts, "EXPERTS_POW2": triton.next_power_of_2(num_experts)}
    yield Build(
        name=f"permute compare, {num_experts} experts",
        kernel=compare_kernel,
        arguments={**_IDS, "counts": "*i32", "places": "*i32"},
        constants={**experts, "CHUNK": CHUNK, "OTHERS": OTHERS},
        options=ORDER_OPTIONS,
    )
    yield Build(
        name=f"permute histogram, {num_experts} experts",
        kernel=histogram_kernel,
        arguments={**_IDS, "histograms": "*i32"},
        constants={**powers, "BLOCK": BLOCK},
        options=ORDER_OPTIONS,
    )
    yield Build(
        name=f"permute offsets, {num_experts} experts",
        kernel=offsets_kernel,
        arguments={"histograms": "*i32", "counts": "*i32", "num_blocks": "i32"},
        constants={**powers, "BLOCKS_AT_ONCE": BLOCKS_AT_ONCE},
        options=OFFSETS_OPTIONS,
    )
    yield Build(
        name=f"permute place, {num_experts} experts",
        kernel=place_kernel,
        arguments={**_IDS, "offsets": "*i32", "places": "*i32"},
        constants={**experts, "CHUNK": CHUNK, "OTHERS": OTHERS, "BLOCK": BLOCK},
        options=ORDER_OPTIONS,
    )
