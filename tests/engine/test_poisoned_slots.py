"""After any events what sequences own is what a fresh prefill computes, next drafts included; nothing else is read.

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
from tests.engine.checkpoints import SHIPPED
from tests.engine.drafting_engines import Foreseeing, draft_model, values_of
from tests.engine.mixed_requests import CPU, ROOMY, outcome_of, tiny
from tests.engine.shipped_model import outcome_for, requests_for

SHAPE = "C"
BLOCK = 4
events = st.lists(
    st.tuples(st.sampled_from(["add", "add", "step", "step", "abort"]), st.integers(0, 5)), min_size=4, max_size=40
)


class PoisonedEngine:
    """An engine whose caches hold nothing but what belongs to somebody."""

    def __init__(self, config: SchedulerConfig, drafts: str, shape: str) -> None:
        target = tiny(shape)
        self.kv = KVCache(target.config, config.num_blocks, config.block_size, torch.float32, CPU)
        self.drafter: ChainDrafter | None = None
        if drafts == "mostly right":
            self.drafter = Foreseeing(config, shape, lambda token: token if token % 3 else token + 1)
        elif (model := draft_model(config.draft_method, shape)) is not None:
            self.drafter = _drafter(model, config)
        self.scheduler = Scheduler(config, lambda: 0.0)
        self.engine = Engine(self.scheduler, ModelRunner(target, self.kv, CPU, self.drafter))
        self.deltas: list[TokenDelta] = []

    @property
    def running(self) -> list[Sequence]:
        return list(self.scheduler._live.running)

    def first_draft(self, sequence: Sequence) -> int | None:
        """What the draft model proposes for the token behind those that a sequence knows."""
        own = self.drafter.own.get(sequence.sequence_id, ()) if isinstance(self.drafter, Foreseeing) else ()
        return next(iter((own or sequence.drafts) if sequence.drafts else ()), None)

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


def _whole(poisoned: PoisonedEngine, sequence: Sequence, config: SchedulerConfig, shape: str) -> bool:
    """The rows of a running sequence are those of a single prefill of its tokens in an empty cache.

    Behind its prompt the next draft is the same, too, which is what the draft model's last row is for; returns whether
    both had one: the prefill knows how much of the output is left, the round before it did not.
    """
    num_rows, num_prompt = sequence.num_computed, sequence.num_prompt
    roomy = dataclasses.replace(config, num_blocks=64, max_rows_per_step=512, prefix_cache=False)
    fresh = PoisonedEngine(roomy, "own", shape)
    request = dataclasses.replace(
        sequence.request, request_id="fresh", num_sequences=1, first_sequence_index=sequence.index
    )
    if num_rows < num_prompt:
        request = dataclasses.replace(request, prompt=tuple(sequence.tokens[: num_rows + 1]))
    else:
        request = dataclasses.replace(request, resumed=tuple(sequence.tokens[num_prompt:num_rows]))
    fresh.engine.add(request)
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
    if num_rows < num_prompt:
        return False
    (again,) = fresh.running
    assert again.tokens == sequence.tokens, "the prefill yields another token"
    drafts = [poisoned.first_draft(sequence), fresh.first_draft(again)]
    if None in drafts:
        return False
    assert drafts[0] == drafts[1], "the prefill proposes another draft"
    return True


@pytest.mark.parametrize(
    ("method", "drafts", "shape"),
    [
        (DraftMethod.EAGLE3, "own", SHIPPED),
        (DraftMethod.EAGLE3, "mostly right", SHAPE),
        (DraftMethod.MTP, "own", SHIPPED),
        (DraftMethod.NONE, "none", SHAPE),
    ],
)
def test_nothing_is_read_that_belongs_to_nobody(method: DraftMethod, drafts: str, shape: str) -> None:
    num_accepted = num_drafts_compared = 0

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        plan=events,
        num_blocks=st.integers(26, 48),
        max_rows=st.sampled_from([5, 16, 64]),
        max_drafts=st.integers(1, 5),
    )
    def demand_it(plan: list[tuple[str, int]], num_blocks: int, max_rows: int, max_drafts: int) -> None:
        nonlocal num_accepted, num_drafts_compared
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
        accepted, compared = _demand_whole_rows(plan, config, drafts, shape)
        num_accepted, num_drafts_compared = num_accepted + accepted, num_drafts_compared + compared

    demand_it()
    assert not method.has_kv or (num_accepted and num_drafts_compared), f"{num_accepted=} {num_drafts_compared=}"


def _demand_whole_rows(
    plan: list[tuple[str, int]], config: SchedulerConfig, drafts: str, shape: str
) -> tuple[int, int]:
    """Add, abort and step as told, then to the end; returns how many drafts were accepted, and how many compared."""
    requests, poisoned = requests_for(shape), PoisonedEngine(config, drafts, shape)
    live: dict[str, Request] = {}
    aborted: set[str] = set()
    for event, number in plan:
        request = requests[number]
        if event == "add" and request.request_id not in live:
            live[request.request_id] = request
            poisoned.engine.add(request)
        elif event == "abort" and request.request_id in live:
            aborted.add(request.request_id)
            poisoned.engine.abort(request.request_id)
        else:
            poisoned.step()
    num_compared = sum([_whole(poisoned, sequence, config, shape) for sequence in poisoned.running[:2]])
    while poisoned.engine.has_work:
        poisoned.step()
    assert not any(delta.finish_reason is FinishReason.ERROR for delta in poisoned.deltas)
    told = outcome_of(poisoned.deltas)
    for key, (tokens, _) in outcome_for(shape).items():
        if key[0] in live and key[0] not in aborted:
            assert told[key][0] == tokens, f"{key} came out otherwise"
    return sum(poisoned.engine.stats().drafts.accepted), num_compared


def test_poison_is_noticed() -> None:
    """Else the test above would prove nothing."""
    poisoned = PoisonedEngine(dataclasses.replace(ROOMY, block_size=BLOCK), "none", SHAPE)
    poisoned.engine.add(requests_for(SHAPE)[1])
    poisoned.step()
    for layer in poisoned.kv.layers:
        _poison(layer, set())
    while poisoned.engine.has_work:
        poisoned.step()
    assert any(delta.finish_reason is FinishReason.ERROR for delta in poisoned.deltas)
