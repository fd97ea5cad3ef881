"""After any events what sequences own is what a fresh prefill computes, and nothing else is ever read.

Behind each step every slot that holds no committed row is filled with NaN, in the model's cache and in the draft
model's: blocks given back, rejected drafts, provisional rows. One read of them and the logits are no numbers.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.drafters.build import chain_drafter
from engine.drafters.chain import ChainDrafter
from engine.drafters.draft_model import DraftModel
from engine.engine import Engine
from engine.model_runner import ModelRunner
from kernels.paged_attention import KVLayer
from model.kv_cache import KVCache
from scheduler.request import DraftMethod, FinishReason, Request, TokenDelta
from scheduler.scheduler import Scheduler, SchedulerConfig
from scheduler.sequence import Sequence
from tests.engine.drafting_engines import Foreseeing, draft_model, values_of
from tests.engine.mixed_requests import CPU, ROOMY, alone, mixed_requests, outcome_of, tiny

SHAPE = "C"
BLOCK = 4
REQUESTS = mixed_requests()
events = st.lists(
    st.tuples(st.sampled_from(["add", "add", "step", "step", "abort"]), st.integers(0, len(REQUESTS) - 1)),
    min_size=4,
    max_size=40,
)


class PoisonedEngine:
    """An engine whose caches hold nothing but what belongs to somebody."""

    def __init__(self, config: SchedulerConfig, drafts: str) -> None:
        target = tiny(SHAPE)
        self.kv = KVCache(target.config, config.num_blocks, config.block_size, torch.float32, CPU)
        self.drafter: ChainDrafter | None = None
        if drafts == "mostly right":
            self.drafter = Foreseeing(config, SHAPE, lambda token: token if token % 3 else token + 1)
        elif (model := draft_model(config.draft_method, SHAPE)) is not None:
            self.drafter = _drafter(model, config)
        self.scheduler = Scheduler(config, lambda: 0.0)
        self.engine = Engine(self.scheduler, ModelRunner(target, self.kv, CPU, self.drafter))
        self.deltas: list[TokenDelta] = []

    @property
    def running(self) -> list[Sequence]:
        return list(self.scheduler._live.running)

    def step(self) -> None:
        self.deltas += self.engine.step()
        self.scheduler.check()
        cache = self.scheduler._tables._cache
        published = {block * BLOCK + offset for block in cache._key_of for offset in range(BLOCK)}
        followed = {block * BLOCK + offset for block in cache._followed for offset in range(BLOCK)}
        for sequence in self.running:
            slots = {sequence.block_table[row // BLOCK] * BLOCK + row % BLOCK for row in range(sequence.num_computed)}
            published |= slots
            followed |= slots if sequence.is_followed else set()
        for layer in self.kv.layers:
            _poison(layer, published)
        if self.drafter is not None:
            _poison(self.drafter.kv, followed)


def _drafter(model: DraftModel, config: SchedulerConfig) -> ChainDrafter:
    return chain_drafter(model, config.num_blocks, config.block_size, torch.float32, CPU)


def _poison(layer: KVLayer, owned: set[int]) -> None:
    """NaN in every slot but these. Where the keys of a block lie transposed, slots are its last axis."""
    num_blocks, _, size, dim = layer.value.shape
    free = [slot for slot in range(num_blocks * size) if slot not in owned]
    slots = torch.tensor(free, dtype=torch.int64)
    blocks, offsets = slots // size, slots % size
    keys = layer.key if layer.is_plain else layer.key.view(num_blocks, -1, dim, size).transpose(2, 3)
    keys[blocks, :, offsets] = math.nan
    layer.value[blocks, :, offsets] = math.nan


def _whole(poisoned: PoisonedEngine, sequence: Sequence, config: SchedulerConfig) -> None:
    """The rows of a running sequence are those of a single prefill of its tokens in an empty cache."""
    num_rows = sequence.num_computed
    roomy = dataclasses.replace(config, num_blocks=64, max_rows_per_step=512, prefix_cache=False)
    fresh = PoisonedEngine(roomy, "own")
    tokens = tuple(sequence.tokens[: num_rows + 1])
    fresh.engine.add(dataclasses.replace(sequence.request, request_id="fresh", prompt=tokens, num_sequences=1))
    plan = fresh.engine.plan()
    fresh.engine.execute(plan)
    table = plan.sequences[0].block_table
    layers = list(zip(poisoned.kv.layers, fresh.kv.layers, strict=True))
    if poisoned.drafter is not None and fresh.drafter is not None and sequence.is_followed:
        layers.append((poisoned.drafter.kv, fresh.drafter.kv))
    for grown, right in layers:
        torch.testing.assert_close(
            values_of(grown, sequence.block_table, num_rows), values_of(right, table, num_rows), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("method", "drafts"),
    [
        (DraftMethod.EAGLE3, "own"),
        (DraftMethod.EAGLE3, "mostly right"),
        (DraftMethod.MTP, "own"),
        (DraftMethod.NONE, "none"),
    ],
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=events, num_blocks=st.integers(26, 48), max_rows=st.sampled_from([5, 16, 64]), max_drafts=st.integers(1, 5))
def test_nothing_is_read_that_belongs_to_nobody(
    method: DraftMethod, drafts: str, plan: list[tuple[str, int]], num_blocks: int, max_rows: int, max_drafts: int
) -> None:
    config = dataclasses.replace(
        ROOMY,
        num_blocks=num_blocks,
        block_size=BLOCK,
        max_rows_per_step=max_rows,
        max_sequences=5,
        prefix_cache=True,
        draft_method=method,
        model_method=method,
        max_drafts=max_drafts if method.has_kv else 0,
        adaptive_drafts=False,
    )
    poisoned = PoisonedEngine(config, drafts)
    live: dict[str, Request] = {}
    aborted: set[str] = set()
    for event, number in plan:
        request = REQUESTS[number]
        if event == "add" and request.request_id not in live:
            live[request.request_id] = request
            poisoned.engine.add(request)
        elif event == "abort" and request.request_id in live:
            aborted.add(request.request_id)
            poisoned.engine.abort(request.request_id)
        else:
            poisoned.step()
    for sequence in poisoned.running[:2]:
        _whole(poisoned, sequence, config)
    while poisoned.engine.has_work:
        poisoned.step()
    assert not any(delta.finish_reason is FinishReason.ERROR for delta in poisoned.deltas)
    told = outcome_of(poisoned.deltas)
    for key, (tokens, _) in alone(SHAPE).items():
        if key[0] in live and key[0] not in aborted:
            assert told[key][0] == tokens, f"{key} came out otherwise"


def test_poison_is_noticed() -> None:
    """Else the test above would prove nothing."""
    poisoned = PoisonedEngine(dataclasses.replace(ROOMY, block_size=BLOCK), "none")
    poisoned.engine.add(REQUESTS[1])
    poisoned.step()
    for layer in poisoned.kv.layers:
        _poison(layer, set())
    while poisoned.engine.has_work:
        poisoned.step()
    assert any(delta.finish_reason is FinishReason.ERROR for delta in poisoned.deltas)
