"""Paged attention on Hopper: decodes and verifies by splits of their contexts, prefill chunks by tiles of rows.

Bytes: 2 * context * A_kv * D a sequence, of two bytes or, in an FP8 cache, one: at 128K, four heads of 128, 268 MB in
bf16, 67 us at 4.0 TB/s (H20 datasheet), and 134 MB in FP8. The splits' sums, 4 * D + 4 bytes a row, head and split, are
written and read: 0.4% of that. FLOP: 4 * context * A * D a row: for a decode of eight heads a KV head 8 a byte of bf16;
a chunk's tile of sixteen rows does 128 and is bound by wgmma. A row's sums depend on its own sequence alone.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton

from kernels.launch import launch_options
from kernels.paged_attention.chunk_kernel import chunk_kernel
from kernels.paged_attention.split_kernel import merge_kernel, split_kernel
from kernels.paged_attention.tiles import (
    MAX_SPLITS,
    MAX_VERIFY_ROWS,
    SMALLEST_SPLIT,
    AttentionTile,
    chunk_tile,
    has_chunks,
    most_rows,
    most_splits,
    num_splits,
    split_tile,
    verify_rows,
)

if TYPE_CHECKING:
    from kernels.paged_attention import KVLayer

MERGE_OPTIONS = launch_options(num_warps=4)


class Batch(NamedTuple):
    """The tensors of a batch in the order in which the kernels take them, and the most rows of a sequence, if known."""

    block_tables: torch.Tensor
    row_starts: torch.Tensor
    context_lens: torch.Tensor
    positions: torch.Tensor
    max_rows: int | None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What the kernels take."""
        return self[:4]

    @property
    def most_rows(self) -> int:
        """The most rows that a sequence may have."""
        if self.max_rows is not None:
            return self.max_rows
        return most_rows(len(self.positions), len(self.context_lens))


def paged_attention(query: torch.Tensor, kv: KVLayer, batch: Batch, scale: float, window: int) -> torch.Tensor:
    """See `kernels.paged_attention.paged_attention`; the layer is plain."""
    out = torch.empty_like(query)
    if query.shape[0]:
        _attend_few(query, kv, batch, (scale, window), out)
        if has_chunks(batch.most_rows):
            _attend_chunks(query, kv, batch, (scale, window), out)
    return out.flatten(1)


def shape_constants(num_heads: int, kv: KVLayer) -> dict[str, int | bool]:
    """What both kernels are compiled with for a shape of heads and cache."""
    return _shape_constants(num_heads, kv.num_kv_heads, kv.head_dim, kv.block_size, kv.key_scale is not None)


@cache
def _shape_constants(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, is_fp8: bool
) -> dict[str, int | bool]:
    group = num_heads // num_kv_heads
    return {
        "GROUP": group,
        "GROUP_POW2": triton.next_power_of_2(group),
        "KV_HEADS": num_kv_heads,
        "DIM": head_dim,
        "DIM_POW2": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_SIZE": block_size,
        "FP8": is_fp8,
    }


@cache
def split_constants(tile: AttentionTile) -> dict[str, int]:
    """What `split_kernel` is compiled with beside that."""
    return {"SMALLEST_SPLIT": SMALLEST_SPLIT, "BLOCK_ROWS": tile.block_rows, "BLOCK_KV": tile.block_kv}


@cache
def merge_constants(num_heads: int, head_dim: int, rows: int) -> dict[str, int]:
    """What `merge_kernel` is compiled with."""
    return {
        "HEADS": num_heads,
        "DIM": head_dim,
        "DIM_POW2": max(16, triton.next_power_of_2(head_dim)),
        "MAX_SPLITS": MAX_SPLITS,
        "SMALLEST_SPLIT": SMALLEST_SPLIT,
        "BLOCK_ROWS": rows,
    }


@cache
def chunk_constants(tile: AttentionTile) -> dict[str, int]:
    """What `chunk_kernel` is compiled with beside the shape."""
    return {"MORE_THAN": MAX_VERIFY_ROWS, "BLOCK_ROWS": tile.block_rows, "BLOCK_KV": tile.block_kv}


def scales_of(kv: KVLayer, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache's scales, or any pointer where there are none."""
    if kv.key_scale is None or kv.value_scale is None:
        return query, query
    return kv.key_scale, kv.value_scale


def _attend_few(
    query: torch.Tensor, kv: KVLayer, batch: Batch, scale_window: tuple[float, int], out: torch.Tensor
) -> None:
    """Fill the rows of sequences that have few."""
    _, num_heads, head_dim = query.shape
    num_sequences, table_width = batch.block_tables.shape
    rows = verify_rows(batch.most_rows)
    most = most_splits(num_sequences * rows * num_heads, head_dim)
    splits = num_splits(table_width * kv.block_size, most)
    tile = split_tile(rows, num_heads // kv.num_kv_heads, query.itemsize)
    partial_shape = (num_sequences, rows, num_heads, splits)
    partial = torch.empty(*partial_shape, head_dim, dtype=torch.float32, device=query.device)
    partial_log = torch.empty(partial_shape, dtype=torch.float32, device=query.device)
    split_kernel[(num_sequences, kv.num_kv_heads, splits)](
        *(query, kv.key, kv.value, *scales_of(kv, query), *batch.tensors, partial, partial_log),
        *(*scale_window, table_width, splits, most),
        **shape_constants(num_heads, kv),
        **split_constants(tile),
        **tile.options,
    )
    merge_kernel[(num_sequences * rows, num_heads)](
        *(partial, partial_log, batch.row_starts, batch.context_lens, out, splits, most),
        **merge_constants(num_heads, head_dim, rows),
        **MERGE_OPTIONS,
    )


def _attend_chunks(
    query: torch.Tensor, kv: KVLayer, batch: Batch, scale_window: tuple[float, int], out: torch.Tensor
) -> None:
    """Fill the rows of sequences that have many."""
    num_rows, num_heads, _ = query.shape
    num_sequences, table_width = batch.block_tables.shape
    tile = chunk_tile(num_heads // kv.num_kv_heads, query.itemsize)
    max_tiles = num_rows // tile.block_rows + num_sequences
    chunk_kernel[(max_tiles, kv.num_kv_heads)](
        *(query, kv.key, kv.value, *scales_of(kv, query), *batch.tensors, out),
        *(*scale_window, table_width, num_sequences),
        **shape_constants(num_heads, kv),
        **chunk_constants(tile),
        **tile.options,
    )
