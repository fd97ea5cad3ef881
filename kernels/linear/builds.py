"""The linear layers of AntAngelMed (Ling-flash), with every tile that a number of rows may choose."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.linear import split_kernel, vector_kernel
from kernels.linear.tiles import linear_tile, num_splits, split_tile
from kernels.linear.triton_kernel import constants, linear_kernel
from kernels.quantise.formats import Scaling

_ROWS = (1, 16, 32, 64, 128, 8192)  # a kernel or a tile each
_WEIGHTS = {"qkv": (5120, 4096), "lm_head": (157184, 4096)}
FORMATS = {"bf16": Scaling.NONE, "fp8 blocks": Scaling.BLOCKS, "fp8 channels": Scaling.CHANNELS}


def builds() -> Iterator[Build]:
    """Products of bf16, whose logits stay fp32, and of both FP8 formats."""
    for name, shape in _WEIGHTS.items():
        for kind, scaling in FORMATS.items():
            if name == "qkv" or scaling is Scaling.NONE:
                for rows in _ROWS if name == "qkv" else _ROWS[1:-1]:
                    yield _build(f"linear {name}, {kind}, {rows} rows", rows, shape, scaling)


def _build(name: str, num_rows: int, shape: tuple[int, int], scaling: Scaling) -> Build:
    operand, itemsize = ("*bf16", 2) if scaling is Scaling.NONE else ("*fp8e4nv", 1)
    arguments = {
        **{"x": operand, "x_scale": "*fp32", "weight": operand, "weight_scale": "*fp32"},
        **{"out": "*fp32" if "lm_head" in name else "*bf16", "num_rows": "i32"},
    }
    if vector_kernel.takes(num_rows, *shape, itemsize):
        return Build(
            name=name,
            kernel=vector_kernel.vector_kernel,
            arguments={key: kind for key, kind in arguments.items() if key != "num_rows"},
            constants=vector_kernel.constants(*shape, scaling, itemsize),
            options=vector_kernel.OPTIONS,
            reads_first=True,
        )
    splits = num_splits(num_rows, *shape, itemsize)
    if splits > 1:
        tile = split_tile(num_rows, itemsize)
        return Build(
            name=name,
            kernel=split_kernel.split_kernel,
            arguments={**arguments, "parts": "*fp32", "arrivals": "*i32"},
            constants=split_kernel.constants(*shape, scaling, splits, tile),
            options=tile.options,
            is_matrix=True,
        )
    tile = linear_tile(num_rows, shape[0], itemsize)
    return Build(
        name=name,
        kernel=linear_kernel,
        arguments=arguments,
        constants=constants(*shape, scaling, tile),
        options=tile.options,
        is_matrix=True,
    )
