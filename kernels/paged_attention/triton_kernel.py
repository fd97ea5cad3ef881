"""Paged attention on Hopper: decodes and verifies by splits of their contexts, prefill chunks by tiles of rows.

Bytes: 2 * context * A_kv * D a sequence, of two bytes or, in an FP8 cache, one: at 128K, four heads of 128, 268 MB in
bf16, 67 us at 4.0 TB/s (H20 datasheet), and 134 MB in FP8. The splits' sums, 4 * D + 4 bytes a row, head and split, are
written and read: 0.8% of that, but of four rows at many sequences a quarter, were splits as short as a decode's. FLOP:
4 * context * A * D a row: for a decode of eight heads a KV head 8 a byte of bf16, 16 of FP8; a chunk's tile of sixteen
rows does 128 and is bound by wgmma. How a context is cut, and so a row's last bits, follows from its own sequence, from
how many there are and from the GPU. At few sequences and short contexts latency is all: one step of 64 positions a
program, so that no load waits for more than the block table, and results in the FP8 of the product that follows.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
import triton

from kernels.paged_attention.chunk_kernel import chunk_kernel
from kernels.paged_attention.split_kernel import merge_kernel, split_kernel
from kernels.paged_attention.tiles import (
    MAX_VERIFY_ROWS,
    SPLIT_UNIT,
    AttentionTile,
    MergeTile,
    chunk_tile,
    cut,
    has_chunks,
    merge_tile,
    most_rows,
    split_tile,
    verify_rows,
)
from kernels.quantise.formats import FP8_BLOCK

if TYPE_CHECKING:
    from kernels.paged_attention import KVLayer


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


class Output(NamedTuple):
    """Where results go: values [T, A, D] and, of e4m3 values, scales [T, A * D / 128]."""

    values: torch.Tensor
    scales: torch.Tensor | None

    @classmethod
    def of(cls, query: torch.Tensor, *, is_quantised: bool) -> Self:
        """Room for the results of these queries."""
        if not is_quantised:
            return cls(torch.empty_like(query), None)
        scales = torch.empty(len(query), query[0].numel() // FP8_BLOCK, dtype=torch.float32, device=query.device)
        return cls(torch.empty_like(query, dtype=torch.float8_e4m3fn), scales)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the kernels take: any pointer where there are no scales."""
        return self.values, self.values if self.scales is None else self.scales

    @property
    def is_quantised(self) -> bool:
        """Whether the values are e4m3."""
        return self.scales is not None


def paged_attention(
    query: torch.Tensor, kv: KVLayer, batch: Batch, scale_window: tuple[float, int], out: Output
) -> None:
    """See `kernels.paged_attention.paged_attention`; the layer is plain."""
    if query.shape[0]:
        _attend_few(query, kv, batch, scale_window, out)
        if has_chunks(batch.most_rows):
            _attend_chunks(query, kv, batch, scale_window, out)


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
def split_constants(rows: int, tile: AttentionTile, *, is_quantised: bool) -> dict[str, int | bool]:
    """What `split_kernel` is compiled with beside that, for sequences of at most `rows` rows."""
    return {
        "QUANTISED": is_quantised,
        "UNIT": SPLIT_UNIT,
        "ROWS": rows,
        "BLOCK_ROWS": tile.block_rows,
        "BLOCK_KV": tile.block_kv,
    }


@cache
def merge_constants(
    num_heads: int, head_dim: int, rows: int, tile: MergeTile, *, is_quantised: bool
) -> dict[str, int | bool]:
    """What a merging kernel is compiled with, whatever merged splits are."""
    return {
        "HEADS": num_heads,
        "DIM": head_dim,
        "DIM_POW2": max(16, triton.next_power_of_2(head_dim)),
        "QUANTISED": is_quantised,
        "BLOCK_ROWS": rows,
        "BLOCK_HEADS": tile.block_heads,
        "AT_ONCE": tile.at_once,
    }


@cache
def chunk_constants(tile: AttentionTile, *, is_quantised: bool) -> dict[str, int | bool]:
    """What `chunk_kernel` is compiled with beside the shape."""
    return {
        "QUANTISED": is_quantised,
        "MORE_THAN": MAX_VERIFY_ROWS,
        "BLOCK_ROWS": tile.block_rows,
        "BLOCK_KV": tile.block_kv,
    }


def scales_of(kv: KVLayer, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache's scales, or any pointer where there are none."""
    if kv.key_scale is None or kv.value_scale is None:
        return query, query
    return kv.key_scale, kv.value_scale


@cache
def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; where there is none, and nothing is measured, as many as an H200 has."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _attend_few(query: torch.Tensor, kv: KVLayer, batch: Batch, scale_window: tuple[float, int], out: Output) -> None:
    """Fill the rows of sequences that have few."""
    _, num_heads, head_dim = query.shape
    num_sequences, table_width = batch.block_tables.shape
    rows, num_programs = verify_rows(batch.most_rows), num_sequences * kv.num_kv_heads
    num_sums = num_sequences * rows * num_heads
    tile = split_tile(rows, num_heads // kv.num_kv_heads, kv.value.itemsize)
    cuts = cut(num_programs, num_sums, head_dim, rows, kv.value.itemsize, _multiprocessors(query.device))
    splits = cuts.num_splits(table_width * kv.block_size)
    merging = merge_tile(num_sums)
    partial_shape = (num_sequences, rows, num_heads, splits)
    partial = torch.empty(*partial_shape, head_dim, dtype=torch.float32, device=query.device)
    partial_log = torch.empty(partial_shape, dtype=torch.float32, device=query.device)
    split_kernel[(num_sequences * (rows // tile.block_rows), kv.num_kv_heads, splits)](
        *(query, kv.key, kv.value, *scales_of(kv, query), *batch.tensors, partial, partial_log, *out.tensors),
        *(*scale_window, table_width, splits, *cuts),
        **shape_constants(num_heads, kv),
        **split_constants(rows, tile, is_quantised=out.is_quantised),
        **tile.options,
    )
    if splits > 1:
        merge_kernel[(num_sequences * rows, -(-num_heads // merging.block_heads))](
            *(query, partial, partial_log, batch.row_starts, batch.context_lens, *out.tensors),
            *(splits, *cuts),
            UNIT=SPLIT_UNIT,
            **merge_constants(num_heads, head_dim, rows, merging, is_quantised=out.is_quantised),
            **merging.options,
        )


def _attend_chunks(
    query: torch.Tensor, kv: KVLayer, batch: Batch, scale_window: tuple[float, int], out: Output
) -> None:
    """Fill the rows of sequences that have many."""
    num_rows, num_heads, _ = query.shape
    num_sequences, table_width = batch.block_tables.shape
    tile = chunk_tile(num_heads // kv.num_kv_heads, query.itemsize)
    max_tiles = num_rows // tile.block_rows + num_sequences
    chunk_kernel[(max_tiles, kv.num_kv_heads)](
        *(query, kv.key, kv.value, *scales_of(kv, query), *batch.tensors, *out.tensors),
        *(*scale_window, table_width, num_sequences),
        **shape_constants(num_heads, kv),
        **chunk_constants(tile, is_quantised=out.is_quantised),
        **tile.options,
    )
