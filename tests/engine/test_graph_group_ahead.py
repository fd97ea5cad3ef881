"""Steps that a group launches before it knows what the one before them brings: nothing comes out otherwise.

The ranks turn together, each on a thread of its own, so that whatever happens to one of them does so at a known moment.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.request import DraftMethod, Request, TokenDelta
from tests.engine.graph_engines import plain_requests
from tests.engine.graph_groups import SHAPE, Group, LateSteps, Moment, group_of, late
from tests.engine.mixed_requests import alone, outcome_of

METHODS = (DraftMethod.NONE, DraftMethod.MTP)
Tokens = dict[tuple[str, int], tuple[int, ...]]


def is_wrong(position: int, token: int) -> bool:
    """Of a draft: so that rounds accept none, some and all of theirs."""
    return (3 * position + token) % 4 == 0


def expected() -> Tokens:
    """What the requests yield, and variants that end early, at a token or by their limit."""
    tokens = {key: tokens for key, (tokens, _) in alone(SHAPE).items()}
    tokens |= {(f"{name} {end}", index): tokens[name, index][: at + 1] for name, index, end, at in _early()}
    return tokens


def requests() -> list[Request]:
    """Of the mixed ones those that buckets hold, two that they do not hold, and those that end early."""
    plain = {request.request_id: request for request in plain_requests()}
    early = []
    for name, _, end, at in _early():
        request = plain[name]
        changes = {"stop_token_ids": (alone(SHAPE)[name, 0][0][at],)} if end == "stops" else {"max_tokens": at + 1}
        sampling = dataclasses.replace(request.sampling, **changes)
        early.append(dataclasses.replace(request, request_id=f"{name} {end}", sampling=sampling, num_sequences=1))
    return [*plain.values(), *early]


def _early() -> list[tuple[str, int, str, int]]:
    return [("long", 0, "stops", _first_new("long")), ("short", 0, "stops", _first_new("short")), ("n", 0, "short", 5)]


def _first_new(name: str) -> int:
    """The place of a token, behind two others at least, that did not come before."""
    tokens = alone(SHAPE)[name, 0][0]
    return next(at for at in range(2, len(tokens)) if tokens[at] not in tokens[:at])


def tokens_of(told: list[TokenDelta]) -> Tokens:
    return {key: tokens for key, (tokens, _) in outcome_of(told).items()}


def demand_one_story(group: Group) -> None:
    """What every rank must have done alike, and that nothing is left over."""
    first = group.runners[0]
    for runner in group.runners:
        assert runner.ran == first.ran, "ranks ran different buckets"
        assert runner.runner.num_ahead == first.runner.num_ahead and runner.runner._ahead is None
    for lockstep in group.locksteps:
        launched = [agreed for agreed in lockstep.ahead if agreed.is_steady and agreed.has_work]
        assert lockstep.ahead == group.locksteps[0].ahead and len(launched) == first.runner.num_ahead
    for engine in group.engines:
        engine.check_integrity()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("method", "max_drafts"), [(DraftMethod.NONE, 0), (DraftMethod.MTP, 1), (DraftMethod.MTP, 3)])
def test_all_decodes_are_on_their_way_and_no_token_changes(size: int, method: DraftMethod, max_drafts: int) -> None:
    """With one agreement a step, but for the first one and the last."""
    placed = [(number % size, request) for number, request in enumerate(plain_requests()[:-2])]
    told, steps = [], []
    for is_ahead in (True, False):
        group = group_of(size, method, max_drafts, is_wrong=is_wrong, is_ahead=is_ahead)
        told.append(tokens_of(group.run(placed)))
        steps.append(len(group.runners[0].ran))
        num_decodes = sum(bucket is not None for bucket in group.runners[0].ran)
        num_ahead = group.runners[0].runner.num_ahead
        demand_one_story(group)
        if is_ahead:
            assert num_ahead == num_decodes - 1 > 2, "the first decode alone is launched when it is planned"
        num_failed = len(group.locksteps[0].ahead) - num_ahead
        assert {lockstep.num_agreements for lockstep in group.locksteps} == {steps[-1] + num_failed}
        assert num_failed == is_ahead, "the last one says that nobody goes on"
    assert told[0] == told[1] and told[0].items() <= expected().items() and steps[0] in (steps[1], steps[1] + 1)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "abort", "turn", "turn", "turn"]),
        st.sampled_from(list(Moment)),
        st.integers(0, 2),  # rank
        st.integers(0, 9),  # request
    ),
    min_size=6,
    max_size=60,
)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=EVENTS,
    size=st.sampled_from([2, 3]),
    num_blocks=st.integers(26, 60),
    max_rows=st.sampled_from([5, 16, 64]),
    is_caching=st.booleans(),
    max_drafts=st.sampled_from([1, 3, 5]),
    is_adaptive=st.booleans(),
)
def test_no_events_change_a_token(
    method: DraftMethod,
    events: list[tuple[str, Moment, int, int]],
    size: int,
    num_blocks: int,
    max_rows: int,
    is_caching: bool,
    max_drafts: int,
    is_adaptive: bool,
) -> None:
    """Requests that come while a step is ahead, end in it, are taken back from or lose their blocks, on any rank."""
    group = group_of(
        size,
        method,
        max_drafts,
        is_wrong=is_wrong,
        steps=late,
        num_blocks=num_blocks,
        block_size=4,
        max_rows_per_step=max_rows,
        max_sequences=5,
        prefix_cache=is_caching,
        adaptive_drafts=is_adaptive,
    )
    everything, placed, aborted = requests(), dict[str, int](), set[str]()
    told: list[TokenDelta] = []
    for event, moment, number, which in events:
        request = everything[which]
        name = request.request_id
        if event == "turn" and group.has_work:
            group.turn()
            told += group.told()
        elif event == "add" and name not in placed:
            placed[name] = number % size
            group.events[number % size].add(moment, partial(group.ranks[number % size].submit, request))
        elif event == "abort" and name in placed:
            aborted.add(name)
            group.events[placed[name]].add(moment, partial(group.ranks[placed[name]].cancel, name))
    told += group.run()
    demand_one_story(group)
    found = tokens_of(told)
    for (name, index), tokens in expected().items():
        if name in placed and name not in aborted:
            assert found[name, index] == tokens, f"{name}/{index} came out otherwise"
        assert found.get((name, index), ()) == tokens[: len(found.get((name, index), ()))]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_waited_for_before_the_next_step_is_launched(method: DraftMethod) -> None:
    """On a device that is late in everything: what was prepared with a look at a result would hold old numbers."""
    group = group_of(2, method, is_wrong=is_wrong, steps=late)
    told = group.run((number % 2, request) for number, request in enumerate(plain_requests()[:-2]))
    assert tokens_of(told).items() <= expected().items()
    demand_one_story(group)
    num_ahead = group.runners[0].runner.num_ahead
    assert num_ahead > 2
    for device in group.devices:
        assert isinstance(device, LateSteps) and device.waits == [True] * num_ahead + [False]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("event", ["prompt", "abort", "prompt to the idle"])
def test_what_happens_while_a_step_is_ahead_leaves_the_others_rows_as_they_are(
    event: str, moment: Moment, method: DraftMethod
) -> None:
    """The rank's rows that were not foreseen wait, those foreseen in vain are not looked at, and all go on together."""
    group = group_of(2, method, 1, is_wrong=is_wrong, steps=late)
    plain = {request.request_id: request for request in plain_requests()}
    busy, idle = group.ranks
    busy.submit(plain["long"])
    if event != "prompt to the idle":
        idle.submit(plain["shared alone"])
    told: list[TokenDelta] = []
    for _ in range(3):
        group.turn()
    assert all(runner.runner._ahead is not None for runner in group.runners)
    act = partial(idle.cancel, "shared alone") if event == "abort" else partial(idle.submit, plain["one token"])
    group.events[1].add(moment, act)
    num_turns, num_ahead = 0, group.runners[0].runner.num_ahead
    while group.engines[1].has_work if event == "abort" else ("one token", 0) not in tokens_of(told):
        group.turn()
        told += group.told()
        num_turns += 1
    # The steps that were launched before the rank knew of it; then one that was not, if somebody's rows are new.
    num_launched = 2 if moment in (Moment.AGREEING, Moment.RUN) else 1
    is_known = event != "abort" or moment is Moment.BEGUN
    assert (group.runners[0].runner.num_ahead - num_ahead, num_turns) == (num_launched, num_launched + is_known)
    told += group.run()
    demand_one_story(group)
    for key, tokens in tokens_of(told).items():
        assert tokens == expected()[key] or (event == "abort" and key[0] == "shared alone")


def test_a_group_stops_behind_the_step_that_is_ahead() -> None:
    group = group_of(2, steps=late)
    for rank, name in zip(group.ranks, ("long", "n"), strict=True):
        rank.submit(next(request for request in plain_requests() if request.request_id == name))
    for _ in range(3):
        group.turn()
    group.events[1].add(Moment.RUN, group.ranks[1].stop)
    assert [group.turn() for _ in range(3)] == [True, True, False]
    demand_one_story(group)
