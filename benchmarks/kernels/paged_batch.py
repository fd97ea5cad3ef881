"""A batch over a paged cache, for the attention benchmarks: 8 query heads over 2 KV heads of 64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.paged_attention import KVLayer, allocate_kv_layer

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 2, 64, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedBatch:
    """`num_sequences` sequences of `context` positions, whose last `rows` positions are this step's."""

    kv: KVLayer
    tables: torch.Tensor
    row_starts: torch.Tensor
    contexts: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    qkv: torch.Tensor


def paged_batch(num_sequences: int, context: int, rows: int) -> PagedBatch:
    """Blocks in order, contents random, bf16."""
    blocks = -(-context // BLOCK_SIZE)
    kv = allocate_kv_layer(num_sequences * blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM, torch.bfloat16)
    kv.key.normal_()
    kv.value.normal_()
    tables = torch.arange(num_sequences * blocks, dtype=torch.int32).view(num_sequences, blocks)
    positions = torch.arange(context - rows, context, dtype=torch.int32).repeat(num_sequences)
    first = torch.arange(num_sequences, dtype=torch.int32).repeat_interleave(rows) * blocks * BLOCK_SIZE
    return PagedBatch(
        kv=kv,
        tables=tables,
        row_starts=torch.arange(num_sequences + 1, dtype=torch.int32) * rows,
        contexts=torch.full((num_sequences,), context, dtype=torch.int32),
        positions=positions,
        slots=first + positions,
        qkv=torch.randn(num_sequences * rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM).to(torch.bfloat16),
    )
