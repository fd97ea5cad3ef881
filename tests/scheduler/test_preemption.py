from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.request import FinishReason
from tests.scheduler.world import CONFIG, World, asking, request

TIGHT = replace(CONFIG, num_blocks=8, prefix_cache=False)  # 32 positions


def test_when_blocks_run_out_the_last_in_turn_gives_way_and_loses_nothing() -> None:
    world = World(TIGHT)
    world.add(request("first", length=10, max_tokens=18), request("second", length=9, max_tokens=18, first=3))
    world.run()
    first, second = world.told["first", 0].usage, world.told["second", 0].usage
    assert first is not None and second is not None
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert second.num_output_tokens == 18
    assert world.scheduler.stats().num_preemptions == 1
    world.assert_outputs()


def test_times_of_a_preempted_sequence_count_from_its_first_start() -> None:
    world = World(TIGHT)
    world.add(request("first", length=10, max_tokens=18), request("second", length=9, max_tokens=18, first=3))
    while world.engine.has_work:
        world.step()
        world.clock.now_s += 1.0
    usage = world.told["second", 0].usage
    assert usage is not None
    assert usage.num_preemptions == 1
    assert (usage.queue_s, usage.prefill_s, usage.decode_s) == (0.0, 0.0, len(world.plans) - 1)


@pytest.mark.parametrize(("length", "is_let_in"), [(12, True), (13, False)])
def test_one_is_let_in_only_if_every_running_one_can_still_grow(length: int, is_let_in: bool) -> None:
    world = World(TIGHT)
    world.add(request("running", length=12, max_tokens=3))  # four of eight blocks from its second step on
    world.step()
    world.add(request("next", length=length, max_tokens=1, first=3))
    world.step()
    assert (world.rows("next") > 0) is is_let_in
    world.run()
    assert world.scheduler.stats().num_preemptions == 0
    world.assert_outputs()


def test_the_lower_priority_gives_way_though_it_came_first() -> None:
    world = World(TIGHT)
    world.add(request("low", length=10, max_tokens=18))
    world.step()
    world.add(request("high", length=9, max_tokens=18, first=3, priority=1))
    world.run()
    high, low = world.told["high", 0].usage, world.told["low", 0].usage
    assert high is not None and low is not None
    assert (high.num_preemptions, low.num_preemptions) == (0, 1)
    world.assert_outputs()


def test_the_background_gives_its_place_to_the_foreground_at_once() -> None:
    world = World(replace(CONFIG, max_sequences=2, prefix_cache=False))
    world.add(*(request(name, max_tokens=20, first=first, priority=-1) for first, name in enumerate("abc", start=1)))
    world.step()
    world.clock.now_s += 1.0
    world.add(request("user", max_tokens=2, first=5))
    world.step()
    assert len(world.output("user")) == 1, "its whole prompt ran in the first step after it came"
    assert world.rows("b") == 0, "the last in turn of those that ran"
    world.run()
    counts = {name: world.told[name, 0].usage.num_preemptions for name in "abc"}  # type: ignore[union-attr]
    assert counts == {"a": 0, "b": 1, "c": 0}
    world.assert_outputs()


def test_the_background_gives_its_blocks_to_the_foreground_at_once() -> None:
    world = World(TIGHT)
    world.add(request("batch", length=20, max_tokens=10, priority=-1))
    world.step()
    world.add(request("user", length=20, max_tokens=4, first=3))
    world.step()
    assert (len(world.output("user")), world.rows("batch")) == (1, 0)
    world.run()
    world.assert_outputs()


def test_nobody_gives_way_to_the_background_or_to_a_higher_priority_of_the_foreground() -> None:
    world = World(replace(CONFIG, max_sequences=1))
    for name, priority in (("user", 0), ("batch", -1), ("urgent", 50)):
        world.add(request(name, max_tokens=5, priority=priority))
        world.step()
    world.run()
    assert world.scheduler.stats().num_preemptions == 0


def test_one_batch_does_not_give_way_to_another() -> None:
    world = World(replace(CONFIG, max_sequences=1))
    world.add(request("first", max_tokens=5, priority=-100))
    world.step()
    world.add(request("second", max_tokens=5, priority=-1))
    world.run()
    assert world.scheduler.stats().num_preemptions == 0


def test_what_waited_its_time_in_the_background_stays() -> None:
    world = World(replace(CONFIG, max_sequences=1, ageing_s=10.0))
    world.add(request("batch", max_tokens=5, priority=-2))
    world.step()
    world.clock.now_s += 21.0  # two priorities are worth 20 s
    world.add(request("user", max_tokens=5))
    world.run()
    assert world.scheduler.stats().num_preemptions == 0


def test_equals_in_turn_do_not_push_each_other_out_for_ever() -> None:
    world = World(replace(CONFIG, max_sequences=1, ageing_s=10.0))
    world.add(request("batch", max_tokens=5, priority=-2))
    world.step()
    world.clock.now_s += 20.0 - (world.clock.now_s - world.scheduler._live.running.last().arrival_s)
    world.add(request("user", max_tokens=5))
    running, waiting = world.scheduler._live.running.last(), world.scheduler._live.waiting.last()
    assert running.turn == waiting.turn, "the world must bring about what it is made for"
    world.run()
    assert world.scheduler.stats().num_preemptions == 0


def test_no_more_give_way_than_the_step_has_rows_for() -> None:
    world = World(replace(CONFIG, max_sequences=8, max_rows_per_step=16, prefix_cache=False))
    world.add(*(request(f"b{number}", length=2, max_tokens=30, first=1 + number, priority=-1) for number in range(8)))
    world.step()
    world.add(*(request(f"u{number}", length=12, max_tokens=2, first=20 + number) for number in range(8)))
    world.step()
    assert world.scheduler.stats().num_preemptions == 2, "24 rows of prompts for 16 of the step"
    world.run()
    world.assert_outputs()


def test_many_that_outgrow_the_pool_all_end() -> None:
    world = World(TIGHT)
    world.add(*(request(f"r{number}", length=3 + number, max_tokens=20, first=1 + number) for number in range(9)))
    world.run()
    assert world.scheduler.stats().num_preemptions > 3
    assert {told.finish_reason for told in world.told.values()} == {FinishReason.LENGTH}
    world.assert_outputs()


def test_one_that_fills_the_whole_pool_still_ends() -> None:
    world = World(TIGHT)
    world.add(request("whole", length=20, max_tokens=100), request("other", length=20, max_tokens=100, first=3))
    world.run()
    assert len(world.output("whole")) == len(world.output("other")) == 12, "the pool's 32 positions are the limit"
    world.assert_outputs()


def test_a_preempted_sequence_finds_what_is_left_of_its_blocks() -> None:
    world = World(replace(TIGHT, prefix_cache=True))
    world.add(request("first", length=10, max_tokens=18), request("second", length=9, max_tokens=18, first=3))
    world.run()
    starts = [planned.start for plan in world.plans for planned in plan.sequences if len(planned.token_ids) > 1]
    assert len(starts) > 2 and max(starts) > 0, "the second computes only what was evicted again"
    assert world.scheduler.stats().prefix_hit_tokens == 0, "what a sequence finds of itself is no hit"
    world.assert_outputs()


def test_a_long_prompt_that_waits_for_blocks_is_not_overtaken_for_ever() -> None:
    world = World(TIGHT)
    world.add(request("running", length=8, max_tokens=12))
    world.step()
    world.add(request("long", length=28, max_tokens=2, first=3))
    for number in range(60):
        world.clock.now_s += 1.0
        world.add(request(f"short{number}", length=4, max_tokens=6, first=4 + number))
        world.step()
        if world.told["long", 0].finish_reason is not None:
            break
    assert world.told["long", 0].finish_reason is FinishReason.LENGTH, "short ones took every free block"
    world.run()
    world.assert_outputs()


def test_scores_of_a_preempted_prompt_are_complete_and_told_once() -> None:
    world = World(replace(TIGHT, max_rows_per_step=8))
    world.add(request("growing", length=4, max_tokens=24))
    world.step()
    scored = asking(request("scored", length=19, max_tokens=2, first=3), num_prompt_logprobs=0)
    world.add(scored)
    world.run()
    assert [score.token_id for score in world.told["scored", 0].prompt_logprobs] == [*scored.prompt[1:]]
    world.assert_outputs()
