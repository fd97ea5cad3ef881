"""Ranks that share the experts run the same buckets: padded alike, the idle one too, and no token changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial

import pytest

from engine.graphs.buckets import Bucket
from engine.graphs.device import HostSteps
from engine.lockstep import StepNeeds
from scheduler.plan import StepShape
from scheduler.request import DraftMethod, Request, TokenDelta
from tests.engine.graph_engines import Recorder, plain_requests, record_without_gpu
from tests.engine.graph_groups import SHAPE, group_of
from tests.engine.mixed_requests import CPU, alone, outcome_of
from tests.engine.worlds import collect, group_locksteps, running
from tests.router.thread_ranks import on_ranks


@pytest.mark.parametrize(("size", "method"), [(2, DraftMethod.NONE), (2, DraftMethod.MTP), (3, DraftMethod.NONE)])
def test_ranks_run_the_same_buckets_and_change_no_token(size: int, method: DraftMethod) -> None:
    group = group_of(size, method)
    ranks, runners = group.ranks, group.runners
    requests = plain_requests()
    told: list[TokenDelta] = []

    def serve(placed: list[tuple[int, Request]]) -> None:
        for number, request in placed:
            ranks[number].submit(request)
        for number, rank in enumerate(ranks):
            mine = {request.request_id for at, request in placed if at == number}
            for deltas in collect(rank, mine).values():
                told.extend(deltas)

    with ExitStack() as stack:
        for rank in ranks:
            stack.enter_context(running(rank))
        serve([(number % size, request) for number, request in enumerate(requests[:-2])])
        serve([(0, requests[-2]), (size - 1, requests[-1])])  # penalised: their steps run as they are
        again = [dataclasses.replace(request, request_id=f"{request.request_id} again") for request in requests[:2]]
        serve([(size - 1, request) for request in again])
    assert all(runner.ran == runners[0].ran for runner in runners), "ranks ran different buckets"
    assert len({bucket for bucket in runners[0].ran if bucket is not None}) > 1
    expected = {key: tokens for key, (tokens, _) in alone(SHAPE).items()}
    for (name, index), (tokens, _) in outcome_of(told).items():
        assert tokens == expected[name.removesuffix(" again"), index], name
    assert len(outcome_of(told)) == len(expected) + 2
    assert None in runners[0].ran


def test_a_group_agrees_on_room_for_all_or_on_none() -> None:
    locksteps = group_locksteps(3)

    def agreed(*shapes: StepShape | None) -> list[StepShape | None]:
        return on_ranks(
            3, lambda rank: locksteps[rank].agree(StepNeeds(num_rows=1, has_work=True, shape=shapes[rank])).shape
        )

    idle, few, many = (StepShape(num_sequences=b, most_rows=r) for b, r in ((0, 1), (2, 4), (7, 1)))
    assert agreed(idle, few, many) == [StepShape(num_sequences=7, most_rows=4)] * 3
    assert agreed(idle, idle, few) == [few] * 3
    assert agreed(idle, None, few) == [None] * 3


class Repeated(Recorder):
    """What was recorded is repeated as a GPU does: no Python sees it, so none counts it."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        recording = super().record(run)

        def replay() -> None:
            num_before = self._collectives.total
            run()
            self._collectives.total = num_before

        recording._graph.replay = replay  # type: ignore[attr-defined]
        return recording


class OneMore(Repeated):
    """Holds a collective that others do not, in each recording."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        def one_more() -> None:
            run()
            self._collectives.total += 1

        return super().record(one_more)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    record_without_gpu(monkeypatch, lambda *_, **__: nullcontext())


def test_what_a_graph_repeats_is_counted(no_gpu: None) -> None:
    """As many collectives as the same steps make that are not recorded."""
    requests = plain_requests()[:3]
    made = []
    for steps in (lambda _: HostSteps(), partial(Repeated, CPU)):
        group = group_of(2, DraftMethod.MTP, steps=steps)
        before = [count.total for count in group.collectives]
        told = group.run((number % 2, request) for number, request in enumerate(requests))
        made.append([count.total - was for count, was in zip(group.collectives, before, strict=True)])
        assert {name for name, _ in outcome_of(told)} == {request.request_id for request in requests}
        assert all(bucket is not None for bucket in group.runners[0].ran[-3:]), "nothing was recorded"
    assert made[0] == made[1]


def test_ranks_whose_graphs_hold_different_collectives_are_caught(no_gpu: None) -> None:
    kinds = iter((Repeated, OneMore))
    group = group_of(2, steps=lambda count: next(kinds)(CPU, count))
    for count in group.collectives:
        count.total = 0  # of recording alone
    with pytest.raises(AssertionError, match="different numbers of collectives"):
        group.run([(0, plain_requests()[0])])


def test_an_idle_rank_joins_with_padding_alone() -> None:
    group = group_of(2)
    ranks, runners = group.ranks, group.runners
    request = plain_requests()[0]
    with ExitStack() as stack:
        for rank in ranks:
            stack.enter_context(running(rank))
        ranks[0].submit(request)
        deltas = collect(ranks[0], {request.request_id})[request.request_id]
        loads = [rank.status().expert_tokens for rank in ranks]
    assert Bucket(num_sequences=1, rows_each=1) in runners[1].ran and runners[0].ran == runners[1].ran
    assert outcome_of(deltas)[request.request_id, 0][0] == alone(SHAPE)[request.request_id, 0][0]
    assert any(loads[0]) and not any(loads[1]), "padding was counted as somebody's tokens"
