"""BailingMoeV2: the forward pass over one batch and the paged KV cache (model-spec §2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.batch import Batch, ModelOutput
from model.config import ModelConfig
from model.heads import LmHead, MtpHead
from model.kv_cache import KVCache
from model.layer import DecoderLayer
from model.norm import RmsNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class BailingModel:
    """One rank's model: attention and shared weights whole, routed experts as far as they are placed here."""

    config: ModelConfig
    embedding: torch.Tensor  # [V, H]
    layers: tuple[DecoderLayer, ...]
    final_norm: RmsNorm
    lm_head: LmHead
    mtp: MtpHead | None = None

    def forward(self, batch: Batch, kv: KVCache, capture_layers: tuple[int, ...] = ()) -> ModelOutput:
        """Run a batch: write its keys and values, return logits of `batch.logit_rows`.

        `capture_layers`, ascending: id i captures the residual stream as layer i receives it (EAGLE3, model-spec §6).
        Every rank of a group calls this in the same step; a batch without rows takes part in the collectives.
        """
        hidden, captured = self.hidden_states(batch, kv, capture_layers)
        logits = self.lm_head(hidden.index_select(0, batch.logit_rows))
        return ModelOutput(logits=logits, hidden=hidden, captured=captured)

    def hidden_states(
        self, batch: Batch, kv: KVCache, capture_layers: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States after the final norm [T, H], and the captured ones [T, C * H]."""
        residual = self.embedding.index_select(0, batch.token_ids)
        normed = self.layers[0].enter(residual)
        captured = []
        for index, layer in enumerate(self.layers):
            if index in capture_layers:
                captured.append(residual.clone())
            out = layer(normed, residual, batch, kv.layers[index])
            if index + 1 < len(self.layers):
                normed = self.layers[index + 1].enter(out, residual)
                del out  # the experts' answers, K of each row, have no room beside the next layer's
        return self.final_norm.after_add(residual, out), torch.cat(captured, dim=1) if captured else None
