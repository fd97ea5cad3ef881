"""Steps that are launched before the host knows what the one before them accepts: nothing comes out otherwise.

Drafts are right or wrong as a table says, so that rounds accept none, some and all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.runner import Foresight, nothing_foreseen
from kernels.paged_attention import KVLayer
from scheduler.plan import StepPlan, StepResult
from scheduler.request import DraftMethod, FinishReason, Request, SamplingParams, TokenDelta
from tests.engine.drafting_engines import Knowing, draft_model, values_of
from tests.engine.graph_engines import (
    GraphWorld,
    demand_no_event_changes_a_token,
    drafting,
    graph_engine,
    plain_requests,
)
from tests.engine.mixed_requests import ROOMY, alone, outcome_of, run_all

SHAPE = "C"
METHODS = (DraftMethod.EAGLE3, DraftMethod.MTP)


def knowing(method: DraftMethod) -> Knowing:
    inner = draft_model(method, SHAPE)
    assert inner is not None
    return Knowing(inner, SHAPE, lambda position, token: (3 * position + token) % 4 == 0)


def world_of(method: DraftMethod, max_drafts: int = 3, *, is_ahead: bool = True, **changes: Any) -> GraphWorld:
    config = dataclasses.replace(drafting(ROOMY, method, max_drafts), **changes)
    return graph_engine(config, SHAPE, knowing(method), is_ahead=is_ahead)


def expected() -> dict[tuple[str, int], tuple[int, ...]]:
    return {key: tokens for key, (tokens, _) in alone(SHAPE).items()}


def bucketed() -> list[Request]:
    """Those of the mixed requests that buckets hold."""
    return plain_requests()[:-2]


@pytest.mark.parametrize("changes", [{}, {"adaptive_drafts": True}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("max_drafts", [1, 2, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_all_steps_are_on_their_way_and_no_token_changes(
    method: DraftMethod, max_drafts: int, changes: dict[str, Any]
) -> None:
    world = world_of(method, max_drafts, **changes)
    told = run_all(world.engine, bucketed())
    assert {key: tokens for key, (tokens, _) in told.items()}.items() <= expected().items()
    counts = world.engine.stats().drafts
    assert 0 < sum(counts.accepted) < sum(counts.drafted), "no round accepted some of its drafts"
    num_decodes = sum(bucket is not None for bucket in world.runner.ran)
    assert world.runner.runner.num_ahead >= num_decodes - 1 > 1, "the first decode alone is launched when it is planned"


def kept_rows(world: GraphWorld) -> dict[tuple[str, int], dict[int, list[torch.Tensor]]]:
    """What lies in both caches at every position that stays, by sequence, as it lay when the sequence was last there.

    Runs the world to its end.
    """
    assert world.draft_kv is not None
    layers: list[KVLayer] = [*world.kv.layers, world.draft_kv]
    found: dict[tuple[str, int], dict[int, list[torch.Tensor]]] = {}
    while world.engine.has_work:
        world.engine.step()
        for sequence in world.engine._scheduler._live.running:
            count = sequence.num_computed
            values = [values_of(layer, sequence.block_table, count) for layer in layers]
            rows = {at: [part[at].clone() for part in values] for at in range(count)}
            found.setdefault((sequence.request.request_id, sequence.index), {}).update(rows)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_both_caches_hold_what_steps_as_they_are_leave(method: DraftMethod) -> None:
    """After every step; the sequences end at different times."""
    found = []
    for is_ahead in (True, False):
        world = world_of(method, block_size=4, is_ahead=is_ahead)
        for request in bucketed():
            world.engine.add(request)
        found.append(kept_rows(world))
        assert (world.runner.runner.num_ahead > 2) is is_ahead
    ahead, plain = found
    assert ahead.keys() == plain.keys() == {key for key in expected() if key[0] in {r.request_id for r in bucketed()}}
    for key, rows in ahead.items():
        shared = rows.keys() & plain[key].keys()
        assert len(shared) > len(next(r.prompt for r in bucketed() if r.request_id == key[0]))
        for at in shared:
            for mine, other in zip(rows[at], plain[key][at], strict=True):
                assert torch.equal(mine, other), f"{key}: position {at}"


EVENTS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "step", "step", "step", "abort", "abort in a step"]), st.integers(0, 6)),
    min_size=4,
    max_size=40,
)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=EVENTS,
    num_blocks=st.integers(26, 60),
    max_rows=st.sampled_from([5, 16, 64]),
    is_caching=st.booleans(),
    max_drafts=st.sampled_from([1, 3, 5]),
    is_adaptive=st.booleans(),
)
def test_no_events_change_a_token(
    method: DraftMethod,
    events: list[tuple[str, int]],
    num_blocks: int,
    max_rows: int,
    is_caching: bool,
    max_drafts: int,
    is_adaptive: bool,
) -> None:
    """Requests that come while a step is ahead, end in it, are taken back from or lose their blocks."""
    world = world_of(
        method,
        max_drafts,
        num_blocks=num_blocks,
        block_size=4,
        max_rows_per_step=max_rows,
        max_sequences=5,
        prefix_cache=is_caching,
        adaptive_drafts=is_adaptive,
    )
    demand_no_event_changes_a_token(world.engine, events, expected())


@pytest.mark.parametrize("max_tokens", range(1, 11))
def test_the_end_of_an_output_holds_nothing_up(max_tokens: int) -> None:
    """Drafts that reach beyond it are verified in vain, and counted nowhere."""
    request = next(request for request in bucketed() if request.request_id == "long")
    short = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, max_tokens=max_tokens))
    stats = []
    for is_ahead in (True, False):
        world = world_of(DraftMethod.EAGLE3, is_ahead=is_ahead)
        told = run_all(world.engine, [short])
        for key, (tokens, _) in told.items():
            assert tokens == expected()[key][:max_tokens]
        if is_ahead:
            num_decodes = sum(bucket is not None for bucket in world.runner.ran)
            assert world.runner.runner.num_ahead == max(num_decodes - 1, 0)
        stats.append(world.engine.stats().drafts)
    assert stats[0] == stats[1], "what was drafted and accepted is another matter ahead"


@pytest.mark.parametrize("max_context", [62, 63, 66, 70])
def test_no_row_lies_beyond_the_context(max_context: int) -> None:
    ran: list[StepPlan] = []
    config = dataclasses.replace(drafting(ROOMY, DraftMethod.EAGLE3, 3), max_context=max_context, block_size=1)
    world = graph_engine(config, SHAPE, knowing(DraftMethod.EAGLE3), behind=ran.append)
    request = next(request for request in bucketed() if request.request_id == "long")
    for key, (tokens, _) in run_all(world.engine, [request]).items():
        assert tokens == expected()[key][: max_context - len(request.prompt)]
    assert all(len(planned.block_table) <= max_context for plan in ran for planned in plan.sequences)


def test_a_stop_token_ends_a_sequence_whose_rows_are_on_their_way() -> None:
    """The others' rows stand; those of the one that ended are not looked at."""
    request = next(request for request in bucketed() if request.request_id == "long")
    tokens = expected()["long", 0]
    stop = next(at for at in range(2, 8) if tokens[at] not in tokens[:at])
    ended = dataclasses.replace(
        request,
        request_id="ended",
        num_sequences=1,
        sampling=dataclasses.replace(request.sampling, stop_token_ids=(tokens[stop],)),
    )
    world = world_of(DraftMethod.EAGLE3, max_drafts=1)
    for one in (ended, *bucketed()):
        world.engine.add(one)
    deltas: list[TokenDelta] = []
    while world.engine.has_work:
        deltas += world.engine.step()
    told = {key: tokens for key, (tokens, _) in outcome_of(deltas).items()}
    assert told.pop(("ended", 0)) == tokens[: stop + 1] and told.items() <= expected().items()
    assert FinishReason.STOP in {delta.finish_reason for delta in deltas}
    assert world.runner.runner.num_ahead == sum(bucket is not None for bucket in world.runner.ran) - 1


def test_a_prompt_that_comes_runs_beside_what_is_on_its_way() -> None:
    world, is_whole = world_of(DraftMethod.EAGLE3), []
    run = world.runner.runner.run

    def running(plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        result = run(plan, foresee)
        is_whole.append(result.is_whole)
        return result

    world.runner.runner.run = running  # type: ignore[method-assign]
    long, late = (request for request in bucketed() if request.request_id in ("long", "one token"))
    if long.request_id != "long":
        long, late = late, long
    world.engine.add(long)
    deltas = [delta for _ in range(2) for delta in world.engine.step()]
    world.engine.add(late)
    num_before = world.runner.runner.num_ahead
    coming = world.engine.step()
    assert world.runner.runner.num_ahead == num_before + 1
    assert {delta.request_id for delta in coming} == {"long", "one token"}
    assert is_whole == [True, True, False], "its time is not that of a step of so many rows"
    deltas += coming
    while world.engine.has_work:
        deltas += world.engine.step()
    assert {key: tokens for key, (tokens, _) in outcome_of(deltas).items()}.items() <= expected().items()


def test_drawn_tokens_have_their_own_numbers_wherever_the_row_moves() -> None:
    """Sampled sequences, each with its own seed: points are those of the output index."""
    sampling = SamplingParams(max_tokens=24, temperature=1.3, ignore_eos=True)
    requests = [
        Request(request_id=str(seed), prompt=(7, 8, 9), sampling=dataclasses.replace(sampling, seed=seed))
        for seed in range(6)
    ]
    told = [run_all(world_of(DraftMethod.EAGLE3, is_ahead=is_ahead).engine, requests) for is_ahead in (True, False)]
    assert told[0] == told[1] and len(set(told[0].values())) == 6
