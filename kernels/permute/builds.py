"""Expert order and rows of AntAngelMed (Ling-flash) and Ling-mini: 256 experts, eight a row."""

from __future__ import annotations

from collections.abc import Iterator

import triton

from kernels.builds import Build
from kernels.permute.tile_map import OPTIONS as TILE_MAP_OPTIONS
from kernels.permute.tile_map import constants as tile_map_constants
from kernels.permute.tile_map import tile_map_kernel
from kernels.permute.triton_kernel import (
    BLOCK,
    BLOCKS_AT_ONCE,
    COMBINE_OPTIONS,
    OFFSETS_OPTIONS,
    ORDER_OPTIONS,
    ROW_OPTIONS,
    combine_kernel,
    compare_constants,
    compare_kernel,
    experts_constants,
    gather_kernel,
    histogram_kernel,
    offsets_kernel,
    place_constants,
    place_kernel,
    row_constants,
)

_TOP_K = 8


def builds() -> Iterator[Build]:
    """All experts on one rank, and thirty-two of them on each of eight."""
    yield from _order_builds(256, _TOP_K, has_totals=True, tiles=(16, 32))
    yield from _order_builds(256, _TOP_K, has_totals=False, tiles=(0,))  # of a group: where copies are sent
    yield from _order_builds(32, _TOP_K, has_totals=False, tiles=(0, 16, 32))
    yield from _order_builds(32, 1, has_totals=False, tiles=(0, 16, 32))
    yield Build(
        name="permute tile map, 256 experts",
        kernel=tile_map_kernel,
        arguments={"counts": "*i32", "tiles": "*i32", "num_tiles": "i32"},
        constants=tile_map_constants(256, 16),
        options=TILE_MAP_OPTIONS,
    )
    for width in (4096, 2048):
        yield Build(
            name=f"permute gather, {width}",
            kernel=gather_kernel,
            arguments={"hidden": "*bf16", "source_rows": "*i32", "rows": "*bf16"},
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
            options=COMBINE_OPTIONS,
        )


def _order_builds(num_experts: int, top_k: int, *, has_totals: bool, tiles: tuple[int, ...]) -> Iterator[Build]:
    powers = {"NUM_EXPERTS": num_experts, "EXPERTS_POW2": triton.next_power_of_2(num_experts)}
    name = f"{num_experts} experts, {top_k} a row{', totals' if has_totals else ''}"
    for tile_rows in tiles:
        yield Build(
            name=f"permute compare, {name}, tiles of {tile_rows} rows",
            kernel=compare_kernel,
            arguments={
                **{"ids": "*i32", "counts": "*i32", "totals": "*i64" if has_totals else "*i32", "places": "*i32"},
                **{"sources": "*i32", "tiles": "*i32", "num_copies": "i32", "num_tiles": "i32"},
            },
            constants=compare_constants(top_k, num_experts, has_totals, tile_rows),
            options=ORDER_OPTIONS,
        )
    yield Build(
        name=f"permute histogram, {name}",
        kernel=histogram_kernel,
        arguments={"ids": "*i32", "num_copies": "i32", "histograms": "*i32"},
        constants={**powers, "BLOCK": BLOCK},
        options=ORDER_OPTIONS,
    )
    yield Build(
        name=f"permute offsets, {name}",
        kernel=offsets_kernel,
        arguments={
            **{"histograms": "*i32", "counts": "*i32", "totals": "*i64" if has_totals else "*i32"},
            **{"num_blocks": "i32"},
        },
        constants={**experts_constants(num_experts, has_totals), "BLOCKS_AT_ONCE": BLOCKS_AT_ONCE},
        options=OFFSETS_OPTIONS,
    )
    yield Build(
        name=f"permute place, {name}",
        kernel=place_kernel,
        arguments={
            **{"ids": "*i32", "offsets": "*i32", "places": "*i32", "sources": "*i32", "num_copies": "i32"},
        },
        constants=place_constants(top_k, num_experts),
        options=ORDER_OPTIONS,
    )
