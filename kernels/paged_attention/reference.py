"""Attention, one sequence after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.paged_attention import KVLayer


def paged_attention(
    query: torch.Tensor,
    kv: KVLayer,
    block_tables: torch.Tensor,
    row_starts: torch.Tensor,
    context_lens: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """See `kernels.paged_attention.paged_attention`; the layer is plain."""
    num_rows, num_heads, head_dim = query.shape
    heads_per_kv = num_heads // kv.num_kv_heads
    out = torch.empty(num_rows, num_heads, head_dim, dtype=query.dtype, device=query.device)
    for sequence, context in enumerate(context_lens.tolist()):
        rows = slice(int(row_starts[sequence]), int(row_starts[sequence + 1]))
        table = block_tables[sequence, : -(-context // kv.block_size)].long()
        key, value = (
            _positions(cache[table].float(), scale_of)[:context].repeat_interleave(heads_per_kv, 1)
            for cache, scale_of in ((kv.key, kv.key_scale), (kv.value, kv.value_scale))
        )
        scores = torch.einsum("tad,nad->atn", query[rows].float(), key) * scale
        distance = positions[rows, None] - torch.arange(context, device=query.device)
        is_hidden = (distance < 0) | (distance >= window)
        weights = scores.masked_fill(is_hidden, float("-inf")).softmax(-1)
        out[rows] = torch.einsum("atn,nad->tad", weights, value).to(query.dtype)
    return out.flatten(1)


def _positions(blocks: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Blocks [M, A_kv, block_size, D] in order, as [M * block_size, A_kv, D]."""
    heads = blocks.transpose(1, 2).flatten(0, 1)
    return heads if scale is None else heads * scale[:, None]
