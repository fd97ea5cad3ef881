"""Grouped-query attention over the paged KV cache, with per-head QK-norm and partial rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.linear import Fp8Rows
from kernels.paged_attention import KVLayer, paged_attention, paged_attention_quantised
from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.rope_kv import qk_norm_rope_kv
from model.batch import Batch
from model.linear import Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The attention of one layer (model-spec §2.4)."""

    query_key_value: Linear  # rows: all Q, all K, all V
    query_norm: torch.Tensor | None  # [D], shared by all query heads; None: heads are not normalised
    key_norm: torch.Tensor | None  # [D]
    dense: Linear
    cos_sin: torch.Tensor  # [P, rotary_dim] fp32, one table for all layers
    scale: float  # 1 / sqrt(D)
    eps: float

    def __call__(self, hidden: torch.Tensor | Fp8Rows, batch: Batch, kv: KVLayer) -> torch.Tensor:
        """Attend from hidden [T, H] and return [T, H]; the rows' keys and values are written into `kv` first."""
        query = qk_norm_rope_kv(
            self.query_key_value(hidden),
            self.query_norm,
            self.key_norm,
            self.cos_sin,
            batch.positions,
            batch.slots,
            kv,
            self.eps,
        )
        where = (batch.block_tables, batch.row_starts, batch.context_lens, batch.positions)
        if self.dense.scaling is Scaling.BLOCKS and kv.head_dim % FP8_BLOCK == 0:
            quantised = paged_attention_quantised(query, kv, *where, self.scale, max_rows=batch.max_rows)
            return self.dense(Fp8Rows(*quantised))
        return self.dense(paged_attention(query, kv, *where, self.scale, max_rows=batch.max_rows))
