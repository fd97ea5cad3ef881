"""From hidden states to logits: the language-model head and the multi-token-prediction head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kernels.paged_attention import KVLayer
from model.batch import Batch, ModelOutput
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
    """One more decoder layer that looks one token further (model-spec §5). Shares embedding and head.

    As a draft model it was trained for one step; each further one starts from its own state and is surer to be wrong.
    """

    capture_layers: ClassVar[tuple[int, ...]] = ()
    is_collective: ClassVar[bool] = True  # its experts are sharded as the model's

    lm_head: LmHead
    num_kv_heads: int
    head_dim: int
    embedding: torch.Tensor  # [V, H], the model's own
    embedding_norm: RmsNorm  # enorm
    hidden_norm: RmsNorm  # hnorm
    projection: Linear  # eh_proj [H, 2H]: embedding half, hidden half
    layer: DecoderLayer
    final_norm: RmsNorm

    def forward(self, hidden: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        """States whose logits predict token i + 2, [T, H].

        hidden [T, H]: the model's states after its final norm at positions i, or the states returned here for the
        step before; `batch` holds the tokens at i + 1 with the positions i, and `kv` is this head's own.
        """
        embedded = self.embedding_norm(self.embedding.index_select(0, batch.token_ids))
        residual = self.projection(torch.cat([embedded, self.hidden_norm(hidden)], dim=1))
        out = self.layer(self.layer.enter(residual), residual, batch, kv)
        return self.final_norm.after_add(residual, out)

    def first_states(self, output: ModelOutput) -> torch.Tensor:
        """What `forward` starts from after the model has run: its normed states [T, H]."""
        return output.hidden

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Over the vocabulary of `target_ids`, from states of `forward` [S, H]: [S, V] fp32."""
        return self.lm_head(states)

    @property
    def target_ids(self) -> None:
        """All of the model's tokens, in their order."""
        return None
