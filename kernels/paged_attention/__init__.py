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
from kernels.quantise import quantise_blocks
from kernels.quantise.formats import FP8_BLOCK

WHOLE_CONTEXT = 2**31 - 1  # a window that no context outgrows


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayer:
    """Keys and values of one layer, in blocks of `block_size` positions.

    Plain: both are [blocks, A_kv, block_size, D]. Otherwise the keys of a block lie as the native kernel reads
    them, sixteen positions side by side: [blocks, A_kv, D, block_size], in pairs of D for bf16.
    An FP8 cache is plain everywhere; it means key * key_scale and value * value_scale, one scale a KV head.
    """

    key: torch.Tensor
    value: torch.Tensor
    block_size: int
    is_plain: bool
    key_scale: torch.Tensor | None = None  # [A_kv] fp32
    value_scale: torch.Tensor | None = None  # [A_kv] fp32

    @property
    def is_native(self) -> bool:
        """Whether the native kernels of the CPU read it: what they laid out, and FP8 where there are any."""
        is_plain_fp8 = self.key_scale is not None and self.value.device.type == "cpu"
        return not self.is_plain or (is_plain_fp8 and native.library() is not None)

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
    """Room for `num_blocks` blocks; D is even, for e4m3 a multiple of four. The scales of an FP8 cache are ones."""
    is_fp8 = dtype == torch.float8_e4m3fn
    assert head_dim % (4 if is_fp8 else 2) == 0, f"heads of {head_dim} channels of {dtype}"
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    key, value = (_zeros(shape, dtype, device or torch.device("cpu")) for _ in range(2))
    return KVLayer(
        key=key,
        value=value,
        block_size=block_size,
        is_plain=is_fp8 or value.device.type != "cpu" or native.library() is None,
        key_scale=torch.ones(num_kv_heads, device=value.device) if is_fp8 else None,
        value_scale=torch.ones(num_kv_heads, device=value.device) if is_fp8 else None,
    )


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
    max_rows: int | None = None,
) -> torch.Tensor:
    """softmax(scale * Q K^T) V, the row at position p over positions (p - window, p] of its sequence.

    query [T, A, D]; block_tables [B, M], row_starts [B + 1], context_lens [B], positions [T], all int32. The rows of
    a sequence are ascending in position. Returns [T, A * D] of the query's dtype; sums are fp32. T = 0 is valid.
    `max_rows`: no sequence has more, which the host may know better than from T and B; a sequence may then have none,
    and a row that no sequence has comes out as anything.
    The sums of a row run in one order whatever the batch, in fp32 on the CPU. Source: model-spec §2.4.
    """
    _check(query, kv, row_starts, context_lens, window)
    tables = (block_tables, row_starts, context_lens, positions)
    if _runs_triton(query, kv):
        values, _ = _triton(query, kv, tables, (scale, window), max_rows, is_quantised=False)
        return values
    run = cpu.paged_attention if kv.is_native else reference.paged_attention
    return run(query, kv, *tables, scale, window)


def paged_attention_quantised(
    query: torch.Tensor,
    kv: KVLayer,
    block_tables: torch.Tensor,
    row_starts: torch.Tensor,
    context_lens: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int = WHOLE_CONTEXT,
    max_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`paged_attention` for a product with block-wise FP8 weights, of heads that are whole groups of 128 channels.

    Returns values [T, A * D] e4m3 and scales [T, A * D / 128] fp32: what `quantise_blocks` makes of the result as
    `paged_attention` rounds it. T = 0 is valid. Source: model-spec §2.4, §4 (a).
    """
    assert kv.head_dim % FP8_BLOCK == 0, f"heads of {kv.head_dim} channels share groups of {FP8_BLOCK}"
    _check(query, kv, row_starts, context_lens, window)
    tables = (block_tables, row_starts, context_lens, positions)
    if _runs_triton(query, kv):
        values, scales = _triton(query, kv, tables, (scale, window), max_rows, is_quantised=True)
        assert scales is not None
        return values, scales
    return quantise_blocks(paged_attention(query, kv, *tables, scale, window, max_rows))


def _runs_triton(query: torch.Tensor, kv: KVLayer) -> bool:
    return kv.is_plain and native.runs_triton(query)


def _triton(
    query: torch.Tensor,
    kv: KVLayer,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    scale_window: tuple[float, int],
    max_rows: int | None,
    *,
    is_quantised: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    from kernels.paged_attention import invariant, triton_kernel  # Triton is imported where it runs

    out = triton_kernel.Output.of(query, is_quantised=is_quantised)
    run = invariant.paged_attention if native.is_batch_invariant() else triton_kernel.paged_attention
    run(query, kv, triton_kernel.Batch(*tables, max_rows), scale_window, out)
    return out.values.flatten(1), out.scales


def _check(query: torch.Tensor, kv: KVLayer, row_starts: torch.Tensor, context_lens: torch.Tensor, window: int) -> None:
    assert query.dim() == 3 and query.is_contiguous(), f"query is {list(query.shape)}, strides {query.stride()}"
    assert query.shape[2] == kv.head_dim, f"query heads of {query.shape[2]} channels, cache of {kv.head_dim}"
    assert query.shape[1] % kv.num_kv_heads == 0, f"{query.shape[1]} query heads over {kv.num_kv_heads} KV heads"
    assert kv.key_scale is not None or query.dtype == kv.value.dtype, f"query is {query.dtype}, cache {kv.value.dtype}"
    assert row_starts.shape[0] == context_lens.shape[0] + 1, (
        f"{len(row_starts)} row starts, {len(context_lens)} sequences"
    )
    assert window > 0, f"a window of {window} positions"
