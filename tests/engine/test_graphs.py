"""Steps in buckets yield what steps as they are yield, to the last token, and touch no slot that is another's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import Acceptance
from scheduler.plan import StepPlan
from scheduler.request import DraftMethod, FinishReason, Request, SamplingParams
from scheduler.scheduler import SchedulerConfig
from tests.engine.drafting_engines import draft_model
from tests.engine.graph_engines import (
    GraphWorld,
    demand_no_event_changes_a_token,
    drafting,
    graph_engine,
    plain_requests,
)
from tests.engine.mixed_requests import ROOMY, alone, outcome_of, run_all

SHAPE = "C"  # has an MTP layer
METHODS = (DraftMethod.NONE, DraftMethod.EAGLE3, DraftMethod.MTP, DraftMethod.NGRAM)


def expected() -> dict[tuple[str, int], tuple[int, ...]]:
    return {key: tokens for key, (tokens, _) in alone(SHAPE).items()}


def said_by(world: GraphWorld) -> dict[tuple[str, int], tuple[int, ...]]:
    """They come one after the other, the penalised ones last: steps in buckets of many sizes, others between."""
    engine, deltas = world.engine, []
    for request in plain_requests():
        engine.add(request)
        for _ in range(5):
            deltas += engine.step()
    while engine.has_work:
        deltas += engine.step()
    return {key: tokens for key, (tokens, _) in outcome_of(deltas).items()}


def world_of(method: DraftMethod, max_drafts: int = 3, **changes: Any) -> GraphWorld:
    config = dataclasses.replace(
        drafting(ROOMY, method, max_drafts if method is not DraftMethod.NONE else 0), **changes
    )
    return graph_engine(config, SHAPE, draft_model(method, SHAPE))


@pytest.mark.parametrize("max_drafts", [1, 2, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_no_token_changes(method: DraftMethod, max_drafts: int) -> None:
    world = world_of(method, max_drafts)
    assert said_by(world) == expected()
    buckets = {bucket for bucket in world.runner.ran if bucket is not None}
    assert len(buckets) > 1 and None in world.runner.ran, f"the steps ran in {buckets} alone"
    if method is not DraftMethod.NONE:
        assert world.engine.stats().drafts.num_rounds > 0
        assert any(bucket.rows_each > 1 for bucket in buckets)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "changes",
    [
        {"max_rows_per_step": 7, "max_sequences": 5},
        {"block_size": 1, "num_blocks": 2048, "prefix_cache": True},
        {"block_size": 4, "num_blocks": 20, "max_rows_per_step": 32, "max_sequences": 6, "prefix_cache": True},
        {"adaptive_drafts": True, "prefix_cache": True},
    ],
    ids=lambda changes: ", ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_no_setting_of_the_scheduler_changes_a_token(method: DraftMethod, changes: dict[str, Any]) -> None:
    """Preemption, prefix hits, sequences that come and go: tables of blocks are not those of the step before."""
    world = world_of(method, **changes)
    for _ in range(2):
        assert said_by(world) == expected()
    assert any(bucket is not None for bucket in world.runner.ran)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "step", "step", "step", "abort"]), st.integers(0, 6)),
    min_size=4,
    max_size=40,
)


@pytest.mark.parametrize("method", [DraftMethod.NONE, DraftMethod.EAGLE3])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=EVENTS, num_blocks=st.integers(26, 48), max_rows=st.sampled_from([5, 16, 64]), is_caching=st.booleans())
def test_no_events_change_a_token(
    method: DraftMethod, events: list[tuple[str, int]], num_blocks: int, max_rows: int, is_caching: bool
) -> None:
    """Requests that come while a step is ahead, end in it, are taken back from or lose their blocks."""
    changes = {"num_blocks": num_blocks, "block_size": 4, "max_rows_per_step": max_rows, "max_sequences": 5}
    world = world_of(method, **changes, prefix_cache=is_caching)
    demand_no_event_changes_a_token(world.engine, events, expected())


def test_the_device_goes_on_while_the_host_takes_in_the_step_before() -> None:
    """All steps but the first are on their way when they are planned; a request that comes has rows of its own."""
    world = world_of(DraftMethod.NONE)
    sampling = SamplingParams(max_tokens=12, temperature=0.8, seed=3, ignore_eos=True)
    first, late = (Request(request_id=name, prompt=(7, 8, 9), sampling=sampling) for name in ("first", "late"))
    world.engine.add(first)
    deltas = [delta for _ in range(5) for delta in world.engine.step()]
    runner = world.runner.runner
    assert runner.num_ahead == 3, "after the prompt's step the first decode is launched, then one behind each"
    world.engine.add(late)
    deltas += world.engine.step()
    assert runner.num_ahead == 4 and {delta.request_id for delta in deltas} == {"first", "late"}
    while world.engine.has_work:
        deltas += world.engine.step()
    told = {key[0]: tokens for key, (tokens, _) in outcome_of(deltas).items()}
    assert told["first"] == told["late"] and len(told["late"]) == 12


def test_drafts_that_are_drawn_run_as_they_are() -> None:
    """What they were drawn from is the host's: only greedy sequences may run in a bucket then."""
    config = drafting(ROOMY, DraftMethod.EAGLE3, 2)
    world = graph_engine(config, SHAPE, draft_model(DraftMethod.EAGLE3, SHAPE), acceptance=Acceptance.REJECTION)
    greedy = [request for request in plain_requests()[:-2] if request.sampling.temperature == 0.0]
    run_all(world.engine, [request for request in plain_requests() if request.sampling.temperature])
    assert world.runner.ran and not any(world.runner.ran)
    told = run_all(world.engine, greedy)
    assert any(world.runner.ran) and {key: tokens for key, (tokens, _) in told.items()}.items() <= expected().items()


def _flat(world: GraphWorld) -> list[torch.Tensor]:
    """Keys and values of every layer by slot, whatever their layout: [slots, ...], copies."""
    layers = [*world.kv.layers, *([] if world.draft_kv is None else [world.draft_kv])]
    found = []
    for layer in layers:
        num_blocks, _, size, dim = layer.value.shape
        key = layer.key if layer.is_plain else layer.key.view(num_blocks, -1, dim, size).transpose(2, 3)
        found += [part.transpose(1, 2).flatten(0, 1).clone() for part in (key, layer.value)]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_step_writes_to_its_own_slots_and_the_scratch_block_alone(method: DraftMethod) -> None:
    before: list[torch.Tensor] = []
    num_checked = 0

    def behind(plan: StepPlan) -> None:
        nonlocal before, num_checked
        own = {
            planned.block_table[position // 16] * 16 + position % 16
            for planned in plan.sequences
            for position in range(planned.start, len(planned.block_table) * 16)
        }
        now = _flat(world)
        others = [slot for slot in range(ROOMY.num_blocks * 16) if slot not in own]
        for old, new in zip(before, now, strict=True):
            assert torch.equal(old[others], new[others]), "a slot of somebody else has changed"
        before, num_checked = now, num_checked + (world.runner.ran[-1] is not None)

    config = drafting(ROOMY, method, 0 if method is DraftMethod.NONE else 3)
    world = graph_engine(config, SHAPE, draft_model(method, SHAPE), behind=behind)
    before = _flat(world)
    for part in before:
        assert not part[: -ROOMY.block_size].any(), "recording wrote to the cache"
    assert said_by(world) == expected()
    assert num_checked > 5


def test_rows_without_finite_logits_end_their_own_sequences_alone() -> None:
    """NaN in the keys of one sequence, whose step is padded."""
    world = world_of(DraftMethod.NGRAM)
    sampling = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    for name in ("sick", "sound"):
        world.engine.add(Request(request_id=name, prompt=(7, 8, 9), sampling=sampling))
    deltas = world.engine.step()
    sick = next(sequence for sequence in world.engine._scheduler._live.running if sequence.request.request_id == "sick")
    for layer in world.kv.layers:
        layer.value[sick.block_table[0]] = float("nan")
    while world.engine.has_work:
        deltas += world.engine.step()
    told = {name: [delta for delta in deltas if delta.request_id == name] for name in ("sick", "sound")}
    assert told["sick"][-1].finish_reason is FinishReason.ERROR and "no finite logits" in told["sick"][-1].error
    assert told["sound"][-1].finish_reason is FinishReason.LENGTH
    assert any(world.runner.ran)


def test_the_steps_of_a_bucket_that_is_too_small_run_as_they_are() -> None:
    config: SchedulerConfig = dataclasses.replace(ROOMY, max_sequences=16)
    world = graph_engine(config, SHAPE)
    sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    requests = [Request(request_id=str(n), prompt=(n, 5), sampling=sampling) for n in range(14)]
    told = run_all(world.engine, requests)
    assert set(world.runner.ran) == {None}
    small = graph_engine(config, SHAPE)
    for request in requests:
        assert run_all(small.engine, [request]).items() <= told.items()
    assert any(small.runner.ran)
