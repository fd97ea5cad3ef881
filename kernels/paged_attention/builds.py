"""The attention of AntAngelMed (Ling-flash): 32 query heads over 4 KV heads of 128, blocks of 16."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.builds import Build
from kernels.paged_attention import KVLayer, allocate_kv_layer
from kernels.paged_attention.chunk_kernel import chunk_kernel
from kernels.paged_attention.invariant import invariant_tile, tile_constants
from kernels.paged_attention.invariant_kernel import merge_tiles_kernel, tile_split_kernel
from kernels.paged_attention.split_kernel import merge_kernel, split_kernel
from kernels.paged_attention.tiles import (
    INVARIANT_MERGE,
    INVARIANT_ROWS,
    INVARIANT_SPLIT,
    SPLIT_UNIT,
    chunk_tile,
    merge_tile,
    split_tile,
)
from kernels.paged_attention.triton_kernel import chunk_constants, merge_constants, shape_constants, split_constants

_HEADS, _KV_HEADS, _DIM, _BLOCK_SIZE = 32, 4, 128, 16
_CACHES = {"bf16": ("*bf16", torch.bfloat16), "fp8": ("*fp8e4nv", torch.float8_e4m3fn)}
_FP8 = "*fp8e4nv"
_RESULTS = {"": "*bf16", ", to FP8": _FP8}
_BATCH = {"block_tables": "*i32", "row_starts": "*i32", "context_lens": "*i32", "positions": "*i32"}


def builds() -> Iterator[Build]:
    """Decodes and verifies of up to eight rows, their merging, and chunks, over both kinds of cache, also to FP8."""
    for kind, (cache, dtype) in _CACHES.items():
        kv = allocate_kv_layer(0, _BLOCK_SIZE, _KV_HEADS, _DIM, dtype)
        inputs = {"query": "*bf16", "key": cache, "value": cache, "key_scale": "*fp32", "value_scale": "*fp32"}
        for result, out in _RESULTS.items():
            for rows in (1, 2, 4, 8):
                yield _split(f"attention of {rows} rows by splits, {kind} cache{result}", rows, kv, inputs, out)
            yield _chunk(f"attention of chunks, {kind} cache{result}", kv, inputs, out)
        yield _tile_split(f"attention of tiles, batch-invariant, {kind} cache", kv, inputs)
    for result, out in _RESULTS.items():
        for rows in (1, 2, 4, 8):
            for extent, num_sums in (("few", rows * _HEADS), ("many", 64 * rows * _HEADS)):
                yield _merge(f"attention, splits of {rows} rows merged, {extent}{result}", rows, num_sums, out)
        yield _merge_tiles(f"attention, splits of tiles merged, batch-invariant{result}", out)


def _split(name: str, rows: int, kv: KVLayer, inputs: dict[str, str], out: str) -> Build:
    tile = split_tile(rows, _HEADS // _KV_HEADS, kv.value.itemsize)
    integers = ("window", "table_width", "splits", "share", "most", "long_log2")
    return Build(
        name=name,
        kernel=split_kernel,
        arguments={
            **{**inputs, **_BATCH, "partial": "*fp32", "partial_log": "*fp32", **_output(out)},
            **{"scale": "fp32", **dict.fromkeys(integers, "i32")},
        },
        constants={**shape_constants(_HEADS, kv), **split_constants(rows, tile, is_quantised=out == _FP8)},
        options=tile.options,
        is_matrix=rows > 1,  # Triton 3.9 makes wgmma of eight columns, too; 3.6 makes mma.sync
    )


def _merge(name: str, rows: int, num_sums: int, out: str) -> Build:
    tile = merge_tile(num_sums)
    return Build(
        name=name,
        kernel=merge_kernel,
        arguments={
            **{"query": "*bf16", "partial": "*fp32", "partial_log": "*fp32", "row_starts": "*i32"},
            **{
                "context_lens": "*i32",
                **_output(out),
                **dict.fromkeys(("splits", "share", "most", "long_log2"), "i32"),
            },
        },
        constants={
            "UNIT": SPLIT_UNIT,
            **merge_constants(_HEADS, _DIM, rows, tile, is_quantised=out == _FP8),
        },
        options=tile.options,
    )


def _tile_split(name: str, kv: KVLayer, inputs: dict[str, str]) -> Build:
    tile = invariant_tile(_HEADS // _KV_HEADS, kv.value.itemsize)
    batch = {name: kind for name, kind in _BATCH.items() if name != "context_lens"}
    integers = ("window", "table_width", "num_sequences", "first_tile", "splits")
    numbers = {"scale": "fp32", **dict.fromkeys(integers, "i32")}
    return Build(
        name=name,
        kernel=tile_split_kernel,
        arguments={**inputs, **batch, "partial": "*fp32", "partial_log": "*fp32", **numbers},
        constants={**shape_constants(_HEADS, kv), **tile_constants(tile, INVARIANT_SPLIT)},
        options=tile.options,
        is_matrix=True,
    )


def _merge_tiles(name: str, out: str) -> Build:
    return Build(
        name=name,
        kernel=merge_tiles_kernel,
        arguments={
            **{"query": "*bf16", "partial": "*fp32", "partial_log": "*fp32", "row_starts": "*i32"},
            **{"positions": "*i32", **_output(out), "num_sequences": "i32", "first_tile": "i32", "splits": "i32"},
        },
        constants={
            "SPLIT": INVARIANT_SPLIT,
            **merge_constants(_HEADS, _DIM, INVARIANT_ROWS, INVARIANT_MERGE, is_quantised=out == _FP8),
        },
        options=INVARIANT_MERGE.options,
    )


def _chunk(name: str, kv: KVLayer, inputs: dict[str, str], out: str) -> Build:
    tile = chunk_tile(_HEADS // _KV_HEADS, torch.bfloat16.itemsize)
    numbers = {"scale": "fp32", "window": "i32", "table_width": "i32", "num_sequences": "i32"}
    return Build(
        name=name,
        kernel=chunk_kernel,
        arguments={**inputs, **_BATCH, **_output(out), **numbers},
        constants={**shape_constants(_HEADS, kv), **chunk_constants(tile, is_quantised=out == _FP8)},
        options=tile.options,
        is_matrix=True,
    )


def _output(out: str) -> dict[str, str]:
    """Where the results go, and what stands for scales where there are none."""
    return {"out": out, "scales": "*fp32" if out == _FP8 else out}
