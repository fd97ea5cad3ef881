"""Where drafting meets the ends of things: of outputs, of rows, of blocks, of sequences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.plan import SequenceResult, StepResult, StepTimes
from scheduler.request import DraftingState, DraftMethod, FinishReason
from scheduler.scheduler import SchedulerConfig
from tests.scheduler.world import CONFIG, World, asking, prompt, request

DRAFTING = replace(
    CONFIG, draft_method=DraftMethod.EAGLE3, model_method=DraftMethod.EAGLE3, max_drafts=3, adaptive_drafts=False
)


def finished(world: World) -> World:
    world.run()
    world.assert_outputs()
    return world


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("skill", [0.0, 0.6, 1.0])
def test_prompts_of_all_lengths(length: int, skill: float) -> None:
    world = World(replace(DRAFTING, max_rows_per_step=8, max_sequences=2), draft_skill=skill)
    world.add(request("a", length=length, max_tokens=13), request("b", length=length, max_tokens=13))
    finished(world)


def test_ends_of_text_wait_for_min_tokens_inside_a_round_too() -> None:
    plain = World(CONFIG)
    plain.add(request("a", max_tokens=12))
    output = finished(plain).told["a", 0].token_ids
    for min_tokens in range(13):
        world = World(replace(DRAFTING, eos_token_ids=(output[2], output[5])), draft_skill=1.0)
        world.add(asking(request("a", max_tokens=12), min_tokens=min_tokens))
        told = finished(world).told["a", 0]
        assert len(told.token_ids) > min(min_tokens, 11)
        assert told.usage is not None and told.usage.num_output_tokens == len(told.token_ids)
        num_alone = sum(not planned.draft_ids for plan in world.plans for planned in plan.sequences)
        assert told.drafts.num_committed + num_alone == len(told.token_ids), "what came behind the end counts not"


def test_all_end_in_the_same_round() -> None:
    world = World(replace(DRAFTING, max_rows_per_step=64), draft_skill=1.0)
    for i in range(8):
        world.add(request(f"r{i}", length=4, max_tokens=9, first=i + 1))
    finished(world)
    assert len(world.plans) == 3
    assert [len(plan.sequences) for plan in world.plans] == [8, 8, 8]


def test_a_sequence_cancelled_while_its_round_runs_leaves_nothing() -> None:
    world = World(DRAFTING, draft_skill=1.0)
    world.add(request("a", max_tokens=30), request("b", max_tokens=30, first=2))
    world.step()
    plan = world.engine.plan()
    assert all(planned.draft_ids for planned in plan.sequences)
    result = world.engine.run(plan)
    world.engine.abort("a")
    world.hear(world.engine.commit(plan, result))
    finished(world)
    assert world.told["a", 0].finish_reason is FinishReason.CANCELLED


def test_preemption_drops_drafts_and_makes_the_draft_model_s_rows_whole_again() -> None:
    config = replace(DRAFTING, num_blocks=8, max_sequences=2, prefix_cache=False)
    world = World(config, draft_skill=1.0)
    world.add(request("a", length=8, max_tokens=20), request("b", length=6, max_tokens=20, first=2))
    finished(world)
    assert world.scheduler.stats().num_preemptions > 0
    usage = world.told["b", 0].usage
    assert usage is not None and usage.num_preemptions > 0
    # Its first step after the preemption runs all it knows, and no draft.
    starts = [p for plan in world.plans for p in plan.sequences if p.start == 0 and p.output_index > 0]
    assert starts and not any(planned.draft_ids for planned in starts)
    assert any(p.draft_ids for plan in world.plans for p in plan.sequences if p.output_index > starts[0].output_index)


def test_prompts_go_on_while_drafts_would_take_every_row() -> None:
    world = World(replace(DRAFTING, max_rows_per_step=16, max_sequences=5, max_drafts=5), draft_skill=0.0)
    for i in range(4):
        world.add(request(f"r{i}", length=3, max_tokens=60, first=i + 1))
    for _ in range(3):
        world.step()
    world.add(request("late", length=30, max_tokens=2, first=9))
    for _ in range(12):
        world.step()
    assert world.told["late", 0].finish_reason is FinishReason.LENGTH
    finished(world)


def test_every_decode_has_its_row_before_any_has_drafts() -> None:
    world = World(replace(DRAFTING, max_rows_per_step=9, max_sequences=8), draft_skill=1.0)
    for i in range(8):
        world.add(request(f"r{i}", length=1, max_tokens=10, first=i + 1))
    for _ in range(6):
        world.step()
        if len(world.plans) > 1:
            assert len(world.plans[-1].sequences) == 8 or world.plans[-1].num_rows < 9
    finished(world)


def test_a_prompt_that_is_only_scored_leaves_whole_rows_for_others() -> None:
    world = World(DRAFTING, draft_skill=1.0)
    world.add(asking(request("scored", length=9), max_tokens=0, num_prompt_logprobs=0))
    world.run()
    world.add(request("after", length=9, max_tokens=6))
    finished(world)
    told = world.told["after", 0]
    assert told.usage is not None and told.usage.num_cached_tokens == 8 and told.drafts.num_rounds > 0


def test_a_look_up_that_finds_nothing_in_a_mixed_batch() -> None:
    world = World(replace(DRAFTING, draft_method=DraftMethod.NGRAM), draft_skill=0.9)
    for i in range(4):
        method = (DraftMethod.NGRAM, DraftMethod.EAGLE3, DraftMethod.NONE)[i % 3]
        world.add(replace(request(f"r{i}", max_tokens=40, first=i + 1), draft_method=method))
    finished(world)
    lengths = {len(p.draft_ids) for plan in world.plans for p in plan.sequences if p.draft_method is DraftMethod.NGRAM}
    assert lengths == {0, 1, 2, 3}


def test_more_drafts_than_asked_or_strange_ones_are_a_bug_of_the_runner() -> None:
    for drafts, message in (((1,) * 4, "4 drafts where 2"), ((64, 1), "not all in"), ((-1,), "not all in")):
        world = World(DRAFTING)
        world.add(request("a"))
        plan = world.engine.plan()
        result = SequenceResult(token_ids=(1,), draft_ids=drafts)
        with pytest.raises(AssertionError, match=message):
            world.scheduler.commit(plan, StepResult(step_id=plan.step_id, sequences=(result,)))


def test_the_seconds_of_all_phases_add_up() -> None:
    world = World(DRAFTING)
    world.add(request("a", max_tokens=30))
    for _ in range(2):
        plan = world.engine.plan()
        times = StepTimes(forward_s=1.0, sample_s=0.5, draft_s=0.25)
        world.hear(world.engine.commit(plan, replace(world.engine.run(plan), times=times)))
    stats = world.scheduler.stats()
    assert (stats.forward_s, stats.sample_s, stats.draft_s) == (2.0, 1.0, 0.5)


def timed_step(world: World) -> StepTimes:
    """One step, whose phases took as long as nothing before it; returns that."""
    number = len(world.plans) + 1
    plan = world.engine.plan()
    times = StepTimes(forward_s=2.0**number, sample_s=number, draft_s=2.0 * number, extend_s=1.0 * number)
    world.hear(world.engine.commit(plan, replace(world.engine.run(plan), times=times)))
    return times


def test_a_sequence_has_the_seconds_of_the_steps_that_it_ran_in() -> None:
    world = World(replace(DRAFTING, max_sequences=1))
    world.add(request("a", max_tokens=4), request("b", max_tokens=9, first=2))
    passed: list[StepTimes] = []
    spent = {}
    while world.engine.has_work:
        passed.append(timed_step(world))
        for (name, _), told in world.told.items():
            if told.usage is not None and name not in spent:
                spent[name] = sum(passed, StepTimes())
    for name, before in (("a", StepTimes()), ("b", spent["a"])):
        usage = world.told[name, 0].usage
        assert usage is not None and usage.forward_s > 0.0
        found = StepTimes(
            forward_s=usage.forward_s, sample_s=usage.sample_s, draft_s=usage.draft_s, extend_s=usage.extend_s
        )
        assert found == spent[name] - before


def test_a_sequence_that_waits_again_has_no_seconds_of_that() -> None:
    config = replace(DRAFTING, num_blocks=8, max_sequences=2, prefix_cache=False)
    world = World(config, draft_skill=1.0)
    world.add(request("a", length=8, max_tokens=20), request("b", length=6, max_tokens=20, first=2))
    expected = {"a": 0.0, "b": 0.0}
    while world.engine.has_work:
        took = timed_step(world).forward_s
        for planned in world.plans[-1].sequences:
            name = "a" if planned.num_prompt_tokens == 8 else "b"
            expected[name] += took
    for name, seconds in expected.items():
        usage = world.told[name, 0].usage
        assert usage is not None and usage.forward_s == seconds
    assert world.scheduler.stats().num_preemptions > 0 and expected["a"] != expected["b"]


def test_one_that_never_ran_has_none() -> None:
    world = World(replace(DRAFTING, max_sequences=1))
    world.add(request("a", max_tokens=9), request("b", first=2))
    timed_step(world)
    world.engine.abort("b")
    timed_step(world)
    usage = world.told["b", 0].usage
    assert usage is not None and (usage.forward_s, usage.draft_s) == (0.0, 0.0)


@pytest.fixture
def shared_beginning() -> World:
    """A world whose prefix cache holds a beginning that the draft model has not seen."""
    world = World(DRAFTING, draft_skill=1.0)
    world.add(replace(request("plain", length=9, max_tokens=3), draft_method=DraftMethod.NONE))
    world.run()
    return world


def test_a_shared_beginning_gets_its_draft_rows_in_the_end(shared_beginning: World) -> None:
    world = shared_beginning
    rounds, cached = [], []
    for i in range(20):
        world.add(replace(request(f"r{i}", max_tokens=6), prompt=(*prompt(9), 20 + i)))
        world.run()
        told = world.told[f"r{i}", 0]
        assert told.usage is not None
        rounds.append(told.drafts.num_rounds > 0)
        cached.append(told.usage.num_cached_tokens)
    finished(world)
    assert rounds == [False] * 16 + [True] * 4
    assert cached == [8] * 16 + [0] + [8] * 3


def adaptive(config: SchedulerConfig = DRAFTING) -> SchedulerConfig:
    return replace(config, adaptive_drafts=True, max_context=4000, num_blocks=1200)


def test_a_hundred_rounds_in_vain_stop_the_drafts_of_a_sequence() -> None:
    world = World(adaptive(), draft_skill=0.05, row_s=3e-4)
    world.add(request("a", max_tokens=2000))
    for _ in range(120):
        world.step()
    before = len(world.plans)
    for _ in range(300):
        world.step()
    num_drafts = sum(plan.num_rows - 1 for plan in world.plans[before:])
    assert num_drafts < 20
    (told,) = world.scheduler.stats().drafting
    assert (told.length, told.state) == (0, DraftingState.RESTING) and told.reason.startswith("k=0: ")
    # Nothing is kept for it any more, and a step costs what it did before there was drafting.
    assert world.plans[-1].num_draft_passes == 0
    world.engine.abort("a")
    finished(world)
    usage = world.told["a", 0].usage
    assert usage is not None and usage.draft_reason == told.reason


def test_it_rests_once_those_that_it_drafts_for_have_ended() -> None:
    """Drafts paid for them, though not for the prompts of others: nobody chose to draft none."""
    world = World(adaptive(), draft_skill=1.0)
    world.add(request("a", max_tokens=400))
    for _ in range(3):
        world.step()
    assert world.scheduler.stats().drafting[0].length == 3
    world.scheduler._drafting._lengths[DraftMethod.EAGLE3]._is_worth_following = False
    world.engine.abort("a")
    world.add(request("b", max_tokens=30, first=2))
    for _ in range(4):
        world.step()
    (told,) = world.scheduler.stats().drafting
    assert (told.length, told.state) == (0, DraftingState.RESTING)


def test_what_is_held_for_drafts_is_given_back_before_anybody_is_preempted() -> None:
    plain = World(CONFIG)
    plain.add(request("a", length=4, max_tokens=13))
    output = finished(plain).told["a", 0].token_ids
    assert output[12] not in output[:12]
    config = replace(DRAFTING, block_size=1, num_blocks=22, max_sequences=2, max_context=60, prefix_cache=False)
    world = World(config, draft_skill=0.0)
    # Nobody knows that it ends after 13 tokens, so it holds blocks far beyond.
    world.add(asking(request("a", length=4, max_tokens=18), stop_token_ids=(output[12],)))
    for _ in range(10):
        world.step()
    world.add(request("b", length=1, max_tokens=20, first=2))
    while world.told["a", 0].finish_reason is None:
        world.step()
    assert world.told["b", 0].token_ids
    finished(world)
    assert world.scheduler.stats().num_preemptions == 0
