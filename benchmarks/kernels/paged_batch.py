"""A batch over a paged cache, for the attention benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.paged_attention import KVLayer, allocate_kv_layer

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Query heads over KV heads of `dim` channels."""

    num: int
    num_kv: int
    dim: int


REFERENCE = Heads(num=8, num_kv=2, dim=64)
ANTANGELMED = Heads(num=32, num_kv=4, dim=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedBatch:
    """`num_sequences` sequences of `context` positions, whose last `rows` positions are this step's."""

    heads: Heads
    kv: KVLayer
    tables: torch.Tensor
    row_starts: torch.Tensor
    contexts: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    qkv: torch.Tensor


def paged_batch(
    num_sequences: int,
    context: int,
    rows: int,
    heads: Heads = REFERENCE,
    cache: torch.dtype = torch.bfloat16,
) -> PagedBatch:
    """Blocks in order, contents random; queries are bf16."""
    blocks = -(-context // BLOCK_SIZE)
    device = torch.get_default_device()
    kv = allocate_kv_layer(num_sequences * blocks, BLOCK_SIZE, heads.num_kv, heads.dim, cache, device)
    for part in (kv.key, kv.value):
        part.copy_(torch.randn(part.shape, dtype=torch.bfloat16))
    tables = torch.arange(num_sequences * blocks, dtype=torch.int32).view(num_sequences, blocks)
    positions = torch.arange(context - rows, context, dtype=torch.int32).repeat(num_sequences)
    first = torch.arange(num_sequences, dtype=torch.int32).repeat_interleave(rows) * blocks * BLOCK_SIZE
    return PagedBatch(
        heads=heads,
        kv=kv,
        tables=tables,
        row_starts=torch.arange(num_sequences + 1, dtype=torch.int32) * rows,
        contexts=torch.full((num_sequences,), context, dtype=torch.int32),
        positions=positions,
        slots=first + positions,
        qkv=torch.randn(num_sequences * rows, (heads.num + 2 * heads.num_kv) * heads.dim).to(torch.bfloat16),
    )
