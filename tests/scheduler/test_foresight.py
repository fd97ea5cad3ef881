"""The next step is told before the present one's tokens are known, and then planned as it was told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.plan import UNKNOWN_TOKEN, SequencePlan, StepPlan
from scheduler.request import DraftMethod
from tests.scheduler.world import CONFIG, Foresees, World, asking, request

DRAFTING = replace(
    CONFIG, draft_method=DraftMethod.EAGLE3, model_method=DraftMethod.EAGLE3, max_drafts=3, adaptive_drafts=False
)
ROOMY = replace(DRAFTING, num_blocks=400, max_rows_per_step=64)


def foreseen(world: World, plan: StepPlan) -> tuple[SequencePlan, ...]:
    coming = world.scheduler.foresee(plan)
    assert coming is not None, "nothing is certain"
    return coming.sequences


def finished(world: World) -> World:
    world.run()
    world.assert_outputs()
    return world


@pytest.mark.parametrize("skill", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("max_drafts", [0, 1, 3, 5])
@pytest.mark.parametrize("is_adaptive", [False, True])
def test_what_was_foreseen_is_planned(skill: float, max_drafts: int, is_adaptive: bool) -> None:
    """Not so where the controller has all drafting end."""
    config = replace(ROOMY, max_drafts=max_drafts, adaptive_drafts=is_adaptive)
    world = World(config, skill, 1e-5, foresees=Foresees.ALONE)
    for at in range(5):
        world.add(request(f"r{at}", max_tokens=60 + at, first=at + 1))
    finished(world)
    seen = world.foreseeing
    num_decodes = sum(len(plan.sequences) for plan in world.plans if len(plan.sequences) == plan.num_rows)
    assert seen.num_foreseen > 20 if max_drafts else seen.num_foreseen == num_decodes - 5
    assert seen.num_right == seen.num_foreseen or (is_adaptive and seen.num_right >= seen.num_foreseen - 5)


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_foresight_changes_no_round(is_adaptive: bool) -> None:
    """What is drafted is the same with a fixed length; the controller's choices take hold a step later."""
    found = []
    for foresees in (Foresees.ALONE, Foresees.NOTHING):
        world = World(replace(ROOMY, adaptive_drafts=is_adaptive), 0.8, 1e-5, foresees=foresees)
        for at in range(4):
            world.add(request(f"r{at}", max_tokens=120, first=at + 1))
        finished(world)
        found.append((len(world.plans), world.scheduler.stats().drafts))
    (steps, drafts), (plain_steps, plain_drafts) = found
    if not is_adaptive:
        assert (steps, drafts) == (plain_steps, plain_drafts)
    assert abs(steps - plain_steps) <= 0.1 * plain_steps


def test_rows_are_told_as_if_no_draft_were_accepted() -> None:
    world = World(ROOMY, 1.0)
    world.add(request("a", max_tokens=30))
    world.step()
    plan = world.engine.plan()
    (coming,) = foreseen(world, plan)
    (planned,) = plan.sequences
    assert coming.token_ids == (UNKNOWN_TOKEN,) * 4 and coming.num_logit_rows == 4 and coming.num_proposals == 3
    assert (coming.start, coming.output_index) == (planned.start + 1, planned.output_index + 1)
    # Four rows now and all of their drafts kept, four rows then, and three drafts behind them.
    assert len(planned.block_table) * CONFIG.block_size >= planned.start + 4 + 4 + 3


@pytest.mark.parametrize("other", ["ngram", "prompt", "waiting", "blocks", "context"])
def test_nothing_is_foreseen_unless_all_of_it_is_certain(other: str) -> None:
    config = replace(ROOMY, max_context=15) if other == "context" else ROOMY
    world = World(replace(config, num_blocks=4) if other == "blocks" else config, 1.0)
    world.add(request("a", length=8, max_tokens=30))
    world.step()
    if other == "ngram":
        world.add(replace(request("b", max_tokens=30), draft_method=DraftMethod.NGRAM))
        world.step()
    if other == "prompt":
        world.add(request("b", length=200))
    plan = world.engine.plan()
    if other == "waiting":
        world.add(request("b"))
    assert world.scheduler.foresee(plan) is None
    world.scheduler.check()


def test_a_sequence_that_is_sure_to_end_has_no_rows() -> None:
    world = World(ROOMY, 0.0)
    world.add(request("short", max_tokens=2), asking(request("long", first=2), max_tokens=30))
    world.step()
    plan = world.engine.plan()
    assert [planned.sampling.max_tokens for planned in plan.sequences] == [2, 30]
    assert [planned.sampling.max_tokens for planned in foreseen(world, plan)] == [30]


def test_times_of_a_step_in_pieces_teach_nothing() -> None:
    """Its rows did not run in one piece: they cost what no planned step of so many rows would."""
    found = []
    for is_whole in (True, False):
        world = World(replace(ROOMY, adaptive_drafts=True), 0.7)
        world.add(request("a", max_tokens=30))
        while world.engine.has_work:
            plan = world.engine.plan()
            result = world.engine.run(plan)
            world.engine.commit(plan, replace(result, is_whole=is_whole))
        lengths = world.scheduler._drafting._lengths[DraftMethod.EAGLE3]
        found.append(lengths._costs.model_s(1) < 1.0)
    assert found == [True, False]


def test_what_was_foreseen_once_holds_for_one_step() -> None:
    """The step after it, of which nobody asked, ends with the output."""
    world = World(replace(ROOMY, block_size=32), 1.0)
    world.add(request("a", max_tokens=11))  # one token with the prompt, two rounds of four, two tokens more
    world.step()
    plan = world.engine.plan()
    assert foreseen(world, plan)
    world.hear(world.engine.execute(plan))
    finished(world)
    assert [plan.num_rows for plan in world.plans] == [6, 4, 4, 2]


def test_blocks_that_were_taken_back_are_reserved_anew() -> None:
    world = World(replace(ROOMY, block_size=1), 1.0)
    world.add(request("a", max_tokens=40))
    world.step()
    plan = world.engine.plan()
    assert foreseen(world, plan)
    world.hear(world.engine.execute(plan))
    assert world.scheduler._take_back()
    finished(world)


def test_what_is_foreseen_stays_within_the_budget() -> None:
    world = World(replace(DRAFTING, max_rows_per_step=10), 1.0, foresees=Foresees.ALONE)
    for at in range(8):
        world.add(request(f"r{at}", length=3, max_tokens=12, first=at + 1))
    finished(world)
    assert all(plan.num_rows <= 10 for plan in world.plans)


@pytest.mark.parametrize("length", [1, 30])
def test_what_was_not_foreseen_waits_for_the_next_step_of_the_group(length: int) -> None:
    """It keeps its place and its blocks meanwhile, and the others go on as foreseen."""
    world = World(replace(ROOMY, max_rows_per_step=20), 1.0, foresees=Foresees.IN_GROUP)
    world.add(request("a", max_tokens=30))
    world.step()
    world.step()
    world.add(request("b", length=length, first=3))
    plan = world.engine.plan()
    assert plan.is_launched and [planned.sequence_id for planned in plan.sequences] == [1]
    assert world.scheduler.stats().num_running == 2 and world.foreseeing.num_postponed == 1
    world.hear(world.engine.execute(plan))
    plan = world.engine.plan()
    assert not plan.is_launched and [planned.sequence_id for planned in plan.sequences] == [1, 2]
    world.hear(world.engine.execute(plan))
    assert world.foreseeing.num_right == world.foreseeing.num_foreseen
    finished(world)
