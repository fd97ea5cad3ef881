"""Engines that draft, over the tiny models of `mixed_requests`: with draft models, by look-up, with made-up drafts."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine.config import EAGLE3_FOLDER, SpeculationConfig
from engine.drafters.build import chain_drafter
from engine.drafters.chain import ChainDrafter
from engine.drafters.draft_model import DraftModel
from engine.engine import Engine
from engine.model_runner import ModelRunner
from kernels.paged_attention import KVLayer
from model.batch import Batch, ModelOutput
from model.eagle3 import Eagle3Head, load_eagle3
from model.eagle3_config import Eagle3Config
from model.kv_cache import KVCache
from scheduler.plan import StepPlan
from scheduler.request import DraftMethod
from scheduler.scheduler import Scheduler, SchedulerConfig
from tests.engine.checkpoints import SHIPPED, shipped_folder
from tests.engine.mixed_requests import CPU, alone, mixed_requests, tiny
from tests.oracle.eagle3_heads import flat_config, random_weights, write_head

_FOLDER = tempfile.TemporaryDirectory(prefix="sigmoe-tests-")


@functools.cache
def eagle3_folder(shape: str) -> Path:
    """A head with random weights for the model of this shape; the trained one of the model that ships."""
    if shape == SHIPPED:
        return shipped_folder() / EAGLE3_FOLDER
    target = tiny(shape).config
    raw = flat_config(target, draft_vocab_size=target.vocab_size // 2)
    weights = random_weights(Eagle3Config.from_dict(raw, target), target)
    return write_head(Path(_FOLDER.name) / shape, raw, weights)


@functools.cache
def eagle3_head(shape: str) -> Eagle3Head:
    model = tiny(shape)
    return load_eagle3(eagle3_folder(shape), model.config, model.embedding, torch.float32, CPU)


class Knowing:
    """A draft model that computes as the one inside it and says what plain decoding of some request yields, mostly.

    `is_wrong` tells where not, from a position and the token behind it. The token that a row proposes travels in the
    first value of its state.
    """

    target_ids = None

    def __init__(self, inner: DraftModel, shape: str, is_wrong: Callable[[int, int], bool]) -> None:
        self._inner = inner
        self.capture_layers, self.is_collective = inner.capture_layers, inner.is_collective
        self.num_kv_heads, self.head_dim = inner.num_kv_heads, inner.head_dim
        self._next = torch.zeros(160, tiny(shape).config.vocab_size, dtype=torch.int64)
        for request in mixed_requests():
            for index in range(request.num_sequences):
                whole = [*request.prompt, *alone(shape)[request.request_id, index][0]]
                for at in range(len(whole) - 2):
                    right = whole[at + 2]
                    self._next[at, whole[at + 1]] = right ^ 1 if is_wrong(at, whole[at + 1]) else right

    def first_states(self, output: ModelOutput) -> torch.Tensor:
        return self._inner.first_states(output)

    def forward(self, states: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        states = self._inner.forward(states, batch, kv)
        states[:, 0] = self._next[batch.positions, batch.token_ids].to(states.dtype)
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(states), self._next.shape[1]).scatter_(1, states[:, :1].long(), 1.0)


class Foreseeing(ChainDrafter):
    """Drafts what plain decoding yields, changed by `spoil`; follows the rows with a real head all the same.

    What that head would have drafted is kept in `own`, by sequence id.
    """

    def __init__(self, config: SchedulerConfig, shape: str, spoil: Callable[[int], int]) -> None:
        head = eagle3_head(shape)
        drafter = chain_drafter(head, config.num_blocks, config.block_size, torch.float32, CPU)
        super().__init__(head, drafter.kv, config.block_size, CPU)
        self._spoil = spoil
        self.own: dict[int, tuple[int, ...]] = {}
        self._known: dict[int, list[int]] = {}
        self._futures = {
            (request.request_id, index): (index, [*request.prompt, *alone(shape)[request.request_id, index][0]])
            for request in mixed_requests()
            for index in range(request.num_sequences)
        }

    def draft(
        self, plan: StepPlan, batch: Batch, output: ModelOutput, kept: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        own = super().draft(plan, batch, output, kept)
        self.own |= {planned.sequence_id: ids for planned, ids in zip(plan.sequences, own, strict=True)}
        drafts = []
        for planned, tokens in zip(plan.sequences, kept, strict=True):
            known = self._known.setdefault(planned.sequence_id, [])
            known[planned.start :] = planned.token_ids[: len(planned.token_ids) - planned.num_logit_rows + len(tokens)]
            now = [*known, *tokens[-1:]]
            future = next(
                (
                    whole
                    for index, whole in self._futures.values()
                    if index == planned.sequence_index and whole[: len(now)] == now
                ),
                now,
            )
            coming = future[len(now) : len(now) + planned.num_proposals]
            drafts.append(tuple(self._spoil(token) for token in coming))
        return drafts


def drafting_engine(
    config: SchedulerConfig,
    shape: str,
    model: DraftModel | None = None,
    drafter: ChainDrafter | None = None,
    kv_dtype: torch.dtype = torch.float32,
) -> tuple[Engine, ChainDrafter | None]:
    """An engine whose scheduler drafts as `config` says."""
    target = tiny(shape)
    kv = KVCache(target.config, config.num_blocks, config.block_size, kv_dtype, CPU)
    if model is not None:
        drafter = chain_drafter(model, config.num_blocks, config.block_size, kv_dtype, CPU)
    speculation = SpeculationConfig(method=config.draft_method, ngram_shortest=1)
    runner = ModelRunner(target, kv, CPU, drafter, speculation)
    return Engine(Scheduler(config, lambda: 0.0), runner), drafter


def draft_model(method: DraftMethod, shape: str) -> DraftModel | None:
    """What drafts with this method."""
    if method is DraftMethod.MTP:
        mtp = tiny(shape).mtp
        assert mtp is not None, f"shape {shape} has no MTP layer"
        return mtp
    return eagle3_head(shape) if method is DraftMethod.EAGLE3 else None


def values_of(layer: KVLayer, table: Sequence[int], num_rows: int) -> torch.Tensor:
    """Values of the first rows of a sequence, as they lie in its blocks: [rows, kv heads, D]."""
    size = layer.block_size
    return torch.stack([layer.value[table[row // size], :, row % size] for row in range(num_rows)])
