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
