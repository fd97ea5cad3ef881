"""The model that a head is trained for, as the engine loads it: inner states and what it would say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import kernels.native
from engine.build import expert_dispatcher
from model.batch import Batch
from model.checkpoint import Target as Placed
from model.checkpoint import load_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.placement import Placement
from training.draft.ranks import Rank

TALK_BLOCK = 16


class TargetModel:
    """Runs whole talks at once; of the experts a rank holds its share, so that all ranks run at the same times."""

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int,
        num_threads: int,
        dtype: torch.dtype = torch.bfloat16,
        place: Rank | None = None,
    ) -> None:
        """`max_tokens`: most tokens of one batch. Raises CheckpointError."""
        place = place or Rank()
        kernels.native.use("auto", num_threads=num_threads)
        self.config = ModelConfig.from_dir(folder)
        self.device = place.device
        experts = Placement.even(self.config.num_experts, place.size)
        placed = Placed(dtype=dtype, device=place.device, placement=experts, rank=place.rank)
        dispatcher = expert_dispatcher(experts, place.rank, place.device)
        self._model = load_model(folder, self.config, target=placed, dispatcher=dispatcher)
        self._kv = KVCache(self.config, -(-2 * max_tokens // TALK_BLOCK), TALK_BLOCK, dtype, place.device)

    @property
    def embedding(self) -> Tensor:
        """[V, H]."""
        return self._model.embedding

    @torch.no_grad()
    def states(self, tokens: Tensor, lengths: Tensor, capture_layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Captured states [B, S, C * H] and normed last states [B, S, H] of talks [B, S] int64, zeros past `lengths`.

        A talk sees itself alone. Talks lie on the host, states on the device.
        """
        batch = whole_talks(tokens, lengths, self.device)
        hidden, captured = self._model.hidden_states(batch, self._kv, capture_layers)
        assert captured is not None, "at least one layer is captured"
        inside = (torch.arange(tokens.shape[1])[None] < lengths[:, None]).to(self.device)
        spread = [part.new_zeros(*tokens.shape, part.shape[1]) for part in (captured, hidden)]
        for place, part in zip(spread, (captured, hidden), strict=True):
            place[inside] = part
        return spread[0], spread[1]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Normed states [N, H] to logits [N, V] fp32."""
        return self._model.lm_head(hidden)


def whole_talks(tokens: Tensor, lengths: Tensor, device: torch.device) -> Batch:
    """One ragged batch of talks [B, S], each in blocks of `TALK_BLOCK` positions of its own; asks for no logits."""
    sizes = lengths.tolist()
    per_talk = -(-tokens.shape[1] // TALK_BLOCK)
    tables = np.arange(len(sizes) * per_talk, dtype=np.int32).reshape(len(sizes), per_talk)
    positions = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    owners = np.repeat(np.arange(len(sizes)), sizes)
    slots = tables[owners, positions // TALK_BLOCK] * TALK_BLOCK + positions % TALK_BLOCK
    return Batch(
        token_ids=torch.cat([row[:size] for row, size in zip(tokens, sizes, strict=True)]).to(device),
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(slots.astype(np.int32)).to(device),
        row_starts=torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device=device),
        context_lens=lengths.to(device, torch.int32),
        block_tables=torch.from_numpy(tables).to(device),
        logit_rows=torch.zeros(0, dtype=torch.int64, device=device),
    )
