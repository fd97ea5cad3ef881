"""The experts of AntAngelMed (Ling-flash): 256 of 4096 x 1024, with every tile that a number of rows may choose."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.grouped_swiglu.quantising_down import quantising_down_constants, quantising_down_kernel
from kernels.grouped_swiglu.tile_map import OPTIONS, tile_map_kernel
from kernels.grouped_swiglu.tile_map import constants as tile_map_constants
from kernels.grouped_swiglu.tiles import down_tile, gate_up_tile, quantising_down_tile, rows_per_tile
from kernels.grouped_swiglu.triton_kernel import down_constants, down_kernel, gate_up_constants, gate_up_kernel
from kernels.linear.builds import FORMATS
from kernels.quantise.formats import Scaling

_EXPERTS, _HIDDEN, _INNER = 256, 4096, 1024
_ROWS = (256, 4096, 8192, 32768)  # 1 to 128 an expert


def builds() -> Iterator[Build]:
    """The map of tiles, and both products in bf16 and both FP8 formats."""
    yield Build(
        name="experts tile map",
        kernel=tile_map_kernel,
        arguments={"counts": "*i32", "tiles": "*i32", "num_tiles": "i32"},
        constants=tile_map_constants(_EXPERTS, 16),
        options=OPTIONS,
    )
    for kind, scaling in FORMATS.items():
        itemsize = 2 if scaling is Scaling.NONE else 1
        for block_rows in sorted({rows_per_tile(rows, _EXPERTS, itemsize, scaling) for rows in _ROWS}):
            yield _gate_up(f"experts gate and up, {kind}, tiles of {block_rows} rows", block_rows, scaling)
            name = f"shared expert gate and up, {kind}, tiles of {block_rows} rows"
            yield _gate_up(name, block_rows, scaling, has_sources=False)
            yield _down(f"experts down, {kind}, tiles of {block_rows} rows", block_rows, scaling)
    for whose, has_sources in (("experts", True), ("shared expert", False)):
        name = f"{whose} gate and up, fp8 blocks, few tiles"
        yield _gate_up(name, 16, Scaling.BLOCKS, has_deferred_scales=True, has_sources=has_sources)
    yield _quantising_down("experts down, fp8 blocks, few tiles", 16)


def _gate_up(
    name: str, block_rows: int, scaling: Scaling, *, has_deferred_scales: bool = False, has_sources: bool = True
) -> Build:
    operand, itemsize = ("*bf16", 2) if scaling is Scaling.NONE else ("*fp8e4nv", 1)
    tile = gate_up_tile(block_rows, itemsize, scaling, has_deferred_scales)
    inner = "*fp32" if has_deferred_scales else "*fp8e4nv" if scaling is Scaling.BLOCKS else "*bf16"
    return Build(
        name=name,
        kernel=gate_up_kernel,
        arguments={
            **{"x": operand, "x_scale": "*fp32", "sources": "*i32"},
            **{"weight": operand, "weight_scale": "*fp32"},
            **{"inner": inner, "inner_scale": "*fp32", "tiles": "*i32"},
        },
        constants=gate_up_constants(_HIDDEN, _INNER, scaling, tile, has_sources),
        options=tile.options,
        is_matrix=True,
    )


def _down(name: str, block_rows: int, scaling: Scaling) -> Build:
    operand, itemsize = ("*bf16", 2) if scaling is Scaling.NONE else ("*fp8e4nv", 1)
    tile = down_tile(block_rows, itemsize)
    return Build(
        name=name,
        kernel=down_kernel,
        arguments={
            **{"inner": operand, "inner_scale": "*fp32", "weight": operand, "weight_scale": "*fp32"},
            **{"out": "*bf16", "tiles": "*i32"},
        },
        constants=down_constants(_HIDDEN, _INNER, scaling, tile),
        options=tile.options,
        is_matrix=True,
    )


def _quantising_down(name: str, block_rows: int) -> Build:
    tile = quantising_down_tile(block_rows)
    return Build(
        name=name,
        kernel=quantising_down_kernel,
        arguments={
            **{"inner": "*fp32", "weight": "*fp8e4nv", "weight_scale": "*fp32", "out": "*bf16", "tiles": "*i32"},
        },
        constants=quantising_down_constants(_HIDDEN, _INNER, tile),
        options=tile.options,
        is_matrix=True,
    )
