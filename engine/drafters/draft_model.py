"""The seam between drafting in a batch and the model that drafts."""

from __future__ import annotations

from typing import Protocol

import torch

from kernels.paged_attention import KVLayer
from model.batch import Batch, ModelOutput


class DraftModel(Protocol):
    """A small model beside the large one; see `model.eagle3.Eagle3Head` and `model.heads.MtpHead`.

    Row i pairs a state of position i with the token at i + 1 and predicts the token at i + 2.
    """

    @property
    def capture_layers(self) -> tuple[int, ...]:
        """Layers of the model whose inputs it is fed with, ascending."""
        ...

    @property
    def is_collective(self) -> bool:
        """Whether a pass has collectives: then every rank of a group runs every pass, with rows or without."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Of its own KV layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Of its own KV layer."""
        ...

    @property
    def target_ids(self) -> torch.Tensor | None:
        """The model's token id of each of its own, [Vd] int64; None where they are the same."""
        ...

    def first_states(self, output: ModelOutput) -> torch.Tensor:
        """What the first pass starts from, [T, h], after the model has run T rows."""
        ...

    def forward(self, states: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        """One pass: states [T, h] (given up) to those of the next pass [T, h]; `batch` holds the tokens at i + 1."""
        ...

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Scores of its vocabulary from returned states [S, h]: [S, Vd] fp32."""
        ...
