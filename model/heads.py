"""From hidden states to logits: the language-model head and the multi-token-prediction head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.paged_attention import KVLayer
from model.batch import Batch
from model.layer import DecoderLayer
from model.linear import Linear
from model.norm import RmsNorm


@dataclass(frozen=True, slots=True)
class LmHead:
    """Vocabulary logits in fp32."""

    weight: Linear

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normed states [S, H] -> logits [S, V] fp32."""
        return self.weight.fp32(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class MtpHead:
    """One more decoder layer that looks one token further (model-spec §5). Shares embedding and head."""

    embedding: torch.Tensor  # [V, H], the model's own
    embedding_norm: RmsNorm  # enorm
    hidden_norm: RmsNorm  # hnorm
    projection: Linear  # eh_proj [H, 2H]: embedding half, hidden half
    layer: DecoderLayer
    final_norm: RmsNorm

    @torch.inference_mode()
    def forward(self, hidden: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        """States whose logits predict token i + 2, [T, H].

        hidden [T, H]: the model's states after its final norm at positions i, or the states returned here for the
        step before; `batch` holds the tokens at i + 1 with the positions i, and `kv` is this head's own.
        """
        embedded = self.embedding_norm(self.embedding.index_select(0, batch.token_ids))
        residual = self.projection(torch.cat([embedded, self.hidden_norm(hidden)], dim=1))
        out = self.layer(self.layer.input_norm(residual), residual, batch, kv)
        return self.final_norm.after_add(residual, out)
