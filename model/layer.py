"""One decoder layer: attention and a feed-forward, each behind its norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.linear import Fp8Rows
from kernels.paged_attention import KVLayer
from kernels.permute import Answers
from model.attention import Attention
from model.batch import Batch
from model.moe import DenseFfn, MoeLayer
from model.norm import RmsNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One pre-norm layer. Its output is left un-added, the experts' un-summed: the next norm does it on its way."""

    input_norm: RmsNorm
    attention: Attention
    post_attention_norm: RmsNorm
    ffn: DenseFfn | MoeLayer

    def enter(self, x: torch.Tensor | Answers, residual: torch.Tensor | None = None) -> torch.Tensor | Fp8Rows:
        """The input norm of x [T, H], after adding x into `residual`, if given: as attention's product reads it."""
        return self.input_norm.quantised(x, self.attention.query_key_value.scaling, residual)

    def __call__(
        self, normed: torch.Tensor | Fp8Rows, residual: torch.Tensor, batch: Batch, kv: KVLayer
    ) -> torch.Tensor | Answers:
        """From the input-normed rows to what is to be added to `residual`, all [T, H]; attention is added here."""
        attended = self.attention(normed, batch, kv)
        rows, quantised = self.post_attention_norm.after_add_and_quantised(residual, attended, self.ffn.scaling)
        return self.ffn(rows, batch.is_live, quantised)
