"""Attention on a GPU for batches whose rows must not depend on one another to the last bit.

Bytes: as `triton_kernel`, and the splits' sums, 4 * D + 4 bytes a row, head and SPLIT positions, written and read: for
a chunk of AntAngelMed at 8K 1.1 GB a thousand rows and layer. The keys are read once for each four rows, mostly out of
L2: 32 operations a byte of bf16. FLOP: 4 * context * A * D a row; a decode pays for four rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import torch

from kernels.paged_attention.invariant_kernel import merge_tiles_kernel, tile_split_kernel
from kernels.paged_attention.tiles import (
    INVARIANT_MERGE,
    INVARIANT_ROWS,
    INVARIANT_SPLIT,
    AttentionTile,
    split_tile,
    tiles_at_once,
)
from kernels.paged_attention.triton_kernel import Batch, Output, merge_constants, scales_of, shape_constants

if TYPE_CHECKING:
    from kernels.paged_attention import KVLayer


def paged_attention(
    query: torch.Tensor, kv: KVLayer, batch: Batch, scale_window: tuple[float, int], out: Output
) -> None:
    """See `kernels.paged_attention.paged_attention`; the layer is plain."""
    num_rows, num_heads, head_dim = query.shape
    num_sequences, table_width = batch.block_tables.shape
    tile = invariant_tile(num_heads // kv.num_kv_heads, kv.value.itemsize)
    splits = -(-table_width * kv.block_size // INVARIANT_SPLIT)
    num_tiles = num_rows // tile.block_rows + num_sequences if num_rows else 0  # at most: the host knows no rows
    for first, count in _parts(num_tiles, tiles_at_once(tile.block_rows * num_heads * splits, head_dim)):
        shape = (count, tile.block_rows, num_heads, splits)
        partial = torch.empty(*shape, head_dim, dtype=torch.float32, device=query.device)
        partial_log = torch.empty(shape, dtype=torch.float32, device=query.device)
        tile_split_kernel[(count, kv.num_kv_heads, splits)](
            *(query, kv.key, kv.value, *scales_of(kv, query), batch.block_tables, batch.row_starts, batch.positions),
            *(partial, partial_log, *scale_window, table_width, num_sequences, first, splits),
            **shape_constants(num_heads, kv),
            **tile_constants(tile, INVARIANT_SPLIT),
            **tile.options,
        )
        merge_tiles_kernel[(count * tile.block_rows, -(-num_heads // INVARIANT_MERGE.block_heads))](
            *(query, partial, partial_log, batch.row_starts, batch.positions, *out.tensors),
            *(num_sequences, first, splits),
            SPLIT=INVARIANT_SPLIT,
            **merge_constants(num_heads, head_dim, tile.block_rows, INVARIANT_MERGE, is_quantised=out.is_quantised),
            **INVARIANT_MERGE.options,
        )


@cache
def invariant_tile(group: int, cache_itemsize: int) -> AttentionTile:
    """The one tile of every row, by the heads and the cache alone."""
    return split_tile(INVARIANT_ROWS, group, cache_itemsize)


@cache
def tile_constants(tile: AttentionTile, split: int) -> dict[str, int]:
    """What `tile_split_kernel` is compiled with beside the shape, for splits of so many positions."""
    return {"SPLIT": split, "BLOCK_ROWS": tile.block_rows, "BLOCK_KV": tile.block_kv}


def _parts(num_tiles: int, at_once: int) -> Iterator[tuple[int, int]]:
    """First tile and number of tiles of each launch."""
    for first in range(0, num_tiles, at_once):
        yield first, min(at_once, num_tiles - first)
