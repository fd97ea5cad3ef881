"""The experts of AntAngelMed (Ling-flash): 256 of 4096 x 1024, with every tile that a number of rows may choose."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.grouped_swiglu import vector_kernel
from kernels.grouped_swiglu.tiles import down_tile, gate_up_tile, tiles_ahead
from kernels.grouped_swiglu.triton_kernel import down_constants, down_kernel, gate_up_constants, gate_up_kernel
from kernels.grouped_swiglu.vector_kernel import down_vector_kernel, gate_up_vector_kernel
from kernels.linear.builds import FORMATS
from kernels.linear.tiles import MAX_NARROW_ROWS
from kernels.permute.tiles import rows_per_tile
from kernels.quantise.formats import Scaling

_EXPERTS, _HIDDEN, _INNER = 256, 4096, 1024
_ROWS = (256, 4096, 8192, 32768)  # 1 to 128 an expert


def builds() -> Iterator[Build]:
    """Both products in bf16 and both FP8 formats."""
    for kind, scaling in FORMATS.items():
        itemsize = 2 if scaling is Scaling.NONE else 1
        for block_rows in sorted({rows_per_tile(rows, _EXPERTS, itemsize, scaling) for rows in _ROWS}):
            tiles = f"{kind}, tiles of {block_rows} rows"
            yield _gate_up(f"experts gate and up, {tiles}", block_rows, scaling)
            yield _gate_up(f"shared expert gate and up, {tiles}", block_rows, scaling, num_experts=1)
            yield _down(f"experts down, {tiles}", block_rows, scaling)
            yield _down(f"shared expert down, {tiles}", block_rows, scaling, num_experts=1)
            if block_rows <= MAX_NARROW_ROWS:
                yield _gate_up(
                    f"experts gate and up, {kind}, a few tiles of {block_rows} rows", block_rows, scaling, num_tiles=8
                )

    for name, is_one in (("experts", False), ("shared expert", True)):
        yield Build(
            name=f"{name} gate and up, fp8 blocks, one token",
            kernel=gate_up_vector_kernel,
            arguments={
                **{"x": "*fp8e4nv", "x_scale": "*fp32", "weight": "*fp8e4nv", "weight_scale": "*fp32"},
                **{"sums": "*fp32", "inner": "*fp8e4nv", "inner_scale": "*fp32", "arrivals": "*i32", "tiles": "*i32"},
            },
            constants=vector_kernel.gate_up_constants(_HIDDEN, _INNER, is_one),
            options=vector_kernel.GATE_UP_OPTIONS,
        )
        yield Build(
            name=f"{name} down, fp8 blocks, one token",
            kernel=down_vector_kernel,
            arguments={
                **{"inner": "*fp8e4nv", "inner_scale": "*fp32", "weight": "*fp8e4nv", "weight_scale": "*fp32"},
                **{"out": "*bf16", "tiles": "*i32"},
            },
            constants=vector_kernel.down_constants(_HIDDEN, _INNER, is_one),
            options=vector_kernel.DOWN_OPTIONS,
            reads_first=True,
        )


def _gate_up(
    name: str, block_rows: int, scaling: Scaling, *, num_experts: int = _EXPERTS, num_tiles: int = _EXPERTS
) -> Build:
    operand, itemsize = ("*bf16", 2) if scaling is Scaling.NONE else ("*fp8e4nv", 1)
    tile = gate_up_tile(block_rows, itemsize, scaling)
    ahead = tiles_ahead(num_tiles, num_experts, _HIDDEN, _INNER, itemsize, tile)
    inner = "*fp8e4nv" if scaling is Scaling.BLOCKS else "*bf16"
    return Build(
        name=name,
        kernel=gate_up_kernel,
        arguments={
            **{"x": operand, "x_scale": "*fp32", "sources": "*i32"},
            **{"weight": operand, "weight_scale": "*fp32", "down": operand},
            **{"inner": inner, "inner_scale": "*fp32", "tiles": "*i32", "num_rows": "i32"},
        },
        constants=gate_up_constants(_HIDDEN, _INNER, scaling, tile, num_experts > 1, num_experts == 1, ahead),
        options=tile.options,
        is_matrix=True,
    )


def _down(name: str, block_rows: int, scaling: Scaling, *, num_experts: int = _EXPERTS) -> Build:
    operand, itemsize = ("*bf16", 2) if scaling is Scaling.NONE else ("*fp8e4nv", 1)
    tile = down_tile(block_rows, itemsize)
    is_one = num_experts == 1
    gate_up = gate_up_tile(block_rows, itemsize, scaling)
    ahead = tiles_ahead(1, 1, _HIDDEN, _INNER, itemsize, gate_up) if is_one else 0
    return Build(
        name=name,
        kernel=down_kernel,
        arguments={
            **{"inner": operand, "inner_scale": "*fp32", "weight": operand, "weight_scale": "*fp32"},
            **{"out": "*bf16", "tiles": "*i32", "num_rows": "i32"},
        },
        constants=down_constants(_HIDDEN, _INNER, scaling, tile, is_one, ahead),
        options=tile.options,
        is_matrix=True,
    )
