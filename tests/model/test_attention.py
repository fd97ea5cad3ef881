"""Attention as the model runs it: what its output product reads."""

from __future__ import annotations

import torch

from kernels.paged_attention import allocate_kv_layer, paged_attention
from kernels.rope_kv import qk_norm_rope_kv
from model.attention import Attention
from model.batch import Batch
from model.linear import Linear


def test_an_fp8_product_reads_what_attention_has_quantised() -> None:
    """Heads of whole FP8 groups: to the last bit as if the product had quantised the rows."""
    draw = torch.Generator().manual_seed(0)
    kv = allocate_kv_layer(3, 4, 1, 128, torch.float32)
    attention = Attention(
        query_key_value=Linear.pack(torch.randn(4 * 128, 24, generator=draw)),
        query_norm=None,
        key_norm=None,
        dense=Linear.pack_fp8(
            torch.randn(24, 256, generator=draw).to(torch.float8_e4m3fn),
            torch.rand(1, 2, generator=draw),
            torch.float32,
        ),
        cos_sin=torch.rand(8, 64, generator=draw),
        scale=0.1,
        eps=1e-6,
    )
    rows = torch.arange(5, dtype=torch.int32)
    batch = Batch(
        token_ids=rows.long(),
        positions=rows,
        slots=rows + 4,
        row_starts=torch.tensor([0, 5], dtype=torch.int32),
        context_lens=torch.tensor([5], dtype=torch.int32),
        block_tables=torch.tensor([[1, 2]], dtype=torch.int32),
        logit_rows=rows.long(),
    )
    hidden = torch.randn(5, 24, generator=draw)
    ours = attention(hidden, batch, kv)
    heads = (None, None, attention.cos_sin, batch.positions, batch.slots, kv, attention.eps)
    query = qk_norm_rope_kv(attention.query_key_value(hidden), *heads)
    tables = (batch.block_tables, batch.row_starts, batch.context_lens, batch.positions)
    assert torch.equal(ours, attention.dense(paged_attention(query, kv, *tables, attention.scale)))
