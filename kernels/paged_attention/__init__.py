"""Causal attention over the paged KV cache: prefill chunks, decodes and verifies in one call.

Bytes: 2 * context * A_kv * D per sequence; FLOP: 4 * context * A * D per row.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch

from kernels import native
from kernels.paged_attention import cpu, reference

WHOLE_CONTEXT = 2**31 - 1  # a window that no context outgrows


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayer:
    """Keys and values of one layer, in blocks of `block_size` positions.

    Plain: both are [blocks, A_kv, block_size, D]. Otherwise the keys of a block lie as the native kernel reads
    them, sixteen positions side by side: [blocks, A_kv, D, block_size], in pairs of D for bf16.
    """

    key: torch.Tensor
    value: torch.Tensor
    block_size: int
    is_plain: bool

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads, A_kv."""
        return int(self.value.shape[1])

    @property
    def head_dim(self) -> int:
        """Channels per head, D."""
        return int(self.value.shape[3])


def allocate_kv_layer(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> KVLayer:
    """Room for `num_blocks` blocks; D is even."""
    assert head_dim % 2 == 0, f"a head of {head_dim} channels, an even number is needed"
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    key, value = (_zeros(shape, dtype, device or torch.device("cpu")) for _ in range(2))
    is_plain = value.device.type != "cpu" or native.library() is None
    return KVLayer(key=key, value=value, block_size=block_size, is_plain=is_plain)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on the CPU pages that take memory when first written. torch.zeros writes them all: 0.6 to 1.2 s a GiB."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(shape)


def paged_attention(
    query: torch.Tensor,
    kv: KVLayer,
    block_tables: torch.Tensor,
    row_starts: torch.Tensor,
    context_lens: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int = WHOLE_CONTEXT,
) -> torch.Tensor:
    """softmax(scale * Q K^T) V, the row at position p over positions (p - window, p] of its sequence.

    query [T, A, D]; block_tables [B, M], row_starts [B + 1], context_lens [B], positions [T], all int32. The rows of
    a sequence are ascending in position. Returns [T, A * D] of the query's dtype; fp32 inside. T = 0 is valid.
    The sums of a row run in one order whatever the batch, in fp32. Source: model-spec §2.4.
    """
    assert query.dim() == 3 and query.is_contiguous(), f"query is {list(query.shape)}, strides {query.stride()}"
    assert query.shape[2] == kv.head_dim, f"query heads of {query.shape[2]} channels, cache of {kv.head_dim}"
    assert query.shape[1] % kv.num_kv_heads == 0, f"{query.shape[1]} query heads over {kv.num_kv_heads} KV heads"
    assert query.dtype == kv.value.dtype, f"query is {query.dtype}, cache {kv.value.dtype}"
    assert row_starts.shape[0] == context_lens.shape[0] + 1, (
        f"{len(row_starts)} row starts, {len(context_lens)} sequences"
    )
    assert window > 0, f"a window of {window} positions"
    run = reference.paged_attention if kv.is_plain else cpu.paged_attention
    return run(query, kv, block_tables, row_starts, context_lens, positions, scale, window)
