"""While nothing drafts the planner hardly looks at a step: what it plans must not show that."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import pairwise

import pytest

from scheduler.draft_costs import DraftedStep
from scheduler.draft_length import DraftLength
from scheduler.drafting import DraftPlanner
from scheduler.plan import StepPlan, num_draft_passes
from scheduler.request import DraftingState, DraftMethod
from scheduler.sequence import Sequence
from tests.scheduler.world import CONFIG, World, request

RESTING = replace(
    CONFIG,
    draft_method=DraftMethod.EAGLE3,
    model_method=DraftMethod.EAGLE3,
    max_drafts=3,
    max_sequences=16,
    num_blocks=2048,
    max_rows_per_step=40,
    max_context=512,
    prefix_cache=False,
)


def changing_house(seed: int, num_steps: int, look: Callable[[World], None] = lambda world: None) -> list[StepPlan]:
    """Plans of a few sequences or many: drafts pay for one or two alone, and rows cost more than they bring for others.

    Some look their drafts up. `look` is called after each step.
    """
    draw = random.Random(seed)
    world = World(RESTING, draft_skill=0.5, row_s=3e-4)
    size = number = 0
    for step in range(num_steps):
        if step % 150 == 0:
            size = draw.choice((1, 2, 6, 7, 9, 12))
        while sum(told.finish_reason is None for told in world.told.values()) < size:
            number += 1
            length, max_tokens = draw.choice((1, 20, 90)), draw.choice((1, 9, 50, 400))
            world.told = {key: told for key, told in world.told.items() if told.finish_reason is None}
            asked = request(f"r{number}", length=length, max_tokens=max_tokens, first=number % 60 + 1)
            world.add(asked if draw.random() < 0.95 else replace(asked, draft_method=DraftMethod.NGRAM))
        world.hear(world.engine.execute(world.engine.plan()))
        look(world)
    return world.plans


def looks_at_every_step(planner: DraftPlanner, decodes: Seq[Sequence]) -> None:
    planner._num_resting = -1
    _begin_step(planner, decodes)


_begin_step, _rests_on = DraftPlanner.begin_step, DraftLength.rests_on


@pytest.mark.parametrize("seed", range(4))
def test_it_plans_as_if_it_looked_at_every_step(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials come in the same steps, for the same sequences, with the same drafts."""
    num_looks = [0]

    def spy(length: DraftLength, num_decodes: int) -> bool:
        num_looks[-1] += 1
        return _rests_on(length, num_decodes)

    monkeypatch.setattr(DraftLength, "rests_on", spy)
    plans = changing_house(seed, 6000)
    num_looks.append(0)
    monkeypatch.setattr(DraftPlanner, "begin_step", looks_at_every_step)
    assert plans == changing_house(seed, 6000)
    are_tried = [any(p.draft_method is DraftMethod.EAGLE3 for p in plan.sequences) for plan in plans]
    num_trials = sum(now and not before for before, now in pairwise(are_tried))
    assert num_trials >= 3 and are_tried.count(False) > 2000, "it rests, and is tried now and then"
    assert num_looks[0] < num_looks[1]


def test_its_status_is_never_stale() -> None:
    seen: dict[DraftMethod, list[DraftingState]] = {DraftMethod.EAGLE3: [], DraftMethod.NGRAM: []}

    def look(world: World) -> None:
        planner = world.scheduler._drafting
        told = world.scheduler.stats().drafting
        assert told == tuple(map(planner._status_of, [one.method for one in told]))
        for one in told:
            assert one.method not in planner._lengths or one.reason == planner._lengths[one.method].reason
            assert one.state is not DraftingState.RESTING or one.length <= 1, "a probe at most"
            if seen[one.method][-1:] != [one.state]:
                seen[one.method].append(one.state)

    changing_house(1, 4000, look)
    states = seen[DraftMethod.EAGLE3]
    assert states[0] is DraftingState.LEARNING
    assert set(states) == {DraftingState.LEARNING, DraftingState.DRAFTING, DraftingState.RESTING}
    assert states.count(DraftingState.LEARNING) > 1, "it is tried again"


def test_whom_the_draft_model_follows_it_runs_for() -> None:
    for plan in changing_house(3, 4000):
        assert plan.num_draft_passes == num_draft_passes(plan.sequences)


def test_it_comes_to_rest_within_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    num_looks = 0

    def spy(length: DraftLength, num_decodes: int) -> bool:
        nonlocal num_looks
        num_looks += 1
        return _rests_on(length, num_decodes)

    monkeypatch.setattr(DraftLength, "rests_on", spy)
    world = World(replace(RESTING, max_context=4096), draft_skill=0.3, row_s=1e-3)
    world.add(request("long", max_tokens=2000))
    world.run()
    assert 0 < world.told["long", 0].drafts.num_committed < 500 and num_looks < 5


@pytest.mark.parametrize(("num_sequences", "every"), [(1, 64), (12, 16)])
def test_it_listens_now_and_then(num_sequences: int, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seldom where steps are short."""
    heard: list[DraftedStep] = []
    monkeypatch.setattr(DraftLength, "is_off", True)
    monkeypatch.setattr(DraftLength, "observe_step", lambda control, step: heard.append(step))
    world = World(replace(RESTING, max_context=4096, num_blocks=1 << 14))
    for number in range(num_sequences):
        world.add(request(f"r{number}", length=1, max_tokens=1281, first=number + 1))
    world.run()
    assert len(heard) == 1280 // every and {step.num_tokens for step in heard} == {num_sequences}
