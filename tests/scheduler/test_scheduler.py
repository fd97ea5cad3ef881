"""How rows are shared: decodes, chunks, turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.plan import SequenceResult, StepResult
from tests.scheduler.world import CONFIG, World, request


def test_a_request_runs_to_its_end() -> None:
    world = World()
    world.add(request("r", length=6, max_tokens=4))
    world.run()
    told = world.told["r", 0]
    assert len(told.token_ids) == 4
    assert told.usage is not None
    assert (told.usage.num_prompt_tokens, told.usage.num_output_tokens) == (6, 4)
    world.assert_outputs()


def test_an_idle_scheduler_plans_nothing_and_may_do_so_again() -> None:
    world = World()
    assert not world.engine.has_work
    assert world.engine.plan().sequences == ()
    assert world.engine.plan().num_rows == 0


def test_a_plan_with_sequences_must_be_committed_first() -> None:
    world = World()
    world.add(request("r"))
    world.engine.plan()
    with pytest.raises(AssertionError, match="planned and not committed"):
        world.engine.plan()


def test_results_of_another_step_are_not_taken() -> None:
    world = World()
    world.add(request("r"))
    plan = world.engine.plan()
    with pytest.raises(AssertionError, match="result of step"):
        world.engine.commit(plan, StepResult(step_id=plan.step_id + 1, sequences=(SequenceResult(),)))


@pytest.mark.parametrize(("num_right", "max_tokens"), [(0, 8), (1, 8), (2, 8), (2, 5)])
def test_drafted_rows_that_prove_wrong_are_rolled_back(num_right: int, max_tokens: int) -> None:
    world = World(replace(CONFIG, block_size=16))
    world.add(request("r", length=6, max_tokens=max_tokens))
    world.step()
    known, right = world.output("r"), world.expected("r")
    plan = world.engine.plan()
    drafts = right[1 : 1 + num_right] + (0,) * (2 - num_right)
    verify = replace(plan.sequences[0], token_ids=(*known, *drafts), num_logit_rows=3)
    plan = replace(plan, sequences=(verify,), num_rows=3)
    world.engine.run(plan)
    accepted = SequenceResult(token_ids=right[1 : 2 + num_right])
    world.hear(world.engine.commit(plan, StepResult(step_id=plan.step_id, sequences=(accepted,))))
    world.scheduler.check()
    world.step()
    assert (world.plans[-1].num_rows, world.plans[-1].sequences[0].start) == (1, 7 + num_right)
    world.run()
    world.assert_outputs()


def test_accepted_tokens_beyond_the_end_are_not_told() -> None:
    world = World(replace(CONFIG, block_size=16))
    world.add(request("r", length=6, max_tokens=3))
    world.step()
    plan = world.engine.plan()
    verify = replace(plan.sequences[0], token_ids=(*world.output("r"), 1, 2), num_logit_rows=3)
    plan = replace(plan, sequences=(verify,), num_rows=3)
    accepted = SequenceResult(token_ids=(*world.expected("r")[1:], 5))
    world.hear(world.engine.commit(plan, StepResult(step_id=plan.step_id, sequences=(accepted,))))
    assert not world.engine.has_work
    world.scheduler.check()
    world.assert_outputs()


def test_a_step_is_committed_once() -> None:
    world = World()
    plan = world.engine.plan()
    result = world.engine.run(plan)
    world.engine.plan()
    with pytest.raises(AssertionError, match="step 1 is committed, 2 was planned last"):
        world.engine.commit(plan, result)


def test_a_long_prompt_is_computed_in_chunks_within_the_budget() -> None:
    world = World(replace(CONFIG, max_rows_per_step=10))
    world.add(request("r", length=33))
    world.run()
    assert [plan.num_rows for plan in world.plans[:4]] == [10, 10, 10, 3]
    assert [plan.sequences[0].num_logit_rows for plan in world.plans[:4]] == [0, 0, 0, 1]
    world.assert_outputs()


def test_no_step_exceeds_the_budget_or_the_number_of_sequences() -> None:
    world = World(replace(CONFIG, max_rows_per_step=12, max_sequences=5))
    for number in range(20):
        world.add(request(f"r{number}", length=3 + 5 * (number % 7), max_tokens=1 + number % 9, first=1 + number))
    world.run()
    assert max(plan.num_rows for plan in world.plans) == 12
    assert max(len(plan.sequences) for plan in world.plans) <= 5
    world.assert_outputs()


def test_decodes_get_their_row_in_every_step_beside_a_long_prompt() -> None:
    world = World(replace(CONFIG, max_rows_per_step=8))
    world.add(request("decoding", length=4, max_tokens=30))
    world.step()
    world.add(request("long", length=100, first=3))
    for _ in range(12):
        world.step()
        assert world.rows("decoding") == 1
        assert world.rows("long") == 7
    world.run()
    world.assert_outputs()


def test_a_short_prompt_overtakes_the_long_one_in_work() -> None:
    world = World(replace(CONFIG, max_rows_per_step=16))
    world.add(request("long", length=200))
    world.step()
    world.add(request("short", length=8, max_tokens=1, first=3))
    world.step()
    assert (world.rows("long"), world.rows("short")) == (8, 8)
    assert world.told["short", 0].finish_reason is not None
    assert world.told["long", 0].finish_reason is None


def test_short_prompts_without_end_leave_the_long_one_half_of_the_rows() -> None:
    world = World(replace(CONFIG, max_rows_per_step=16))
    world.add(request("long", length=160, max_tokens=1))
    for step in range(20):
        assert world.told["long", 0].finish_reason is None, f"after {step} steps"
        world.add(*(request(f"short{step}.{i}", length=12, max_tokens=1, first=2 + step) for i in range(3)))
        world.clock.now_s += 1.0
        world.step()
        assert world.rows("long") >= 8
    assert world.told["long", 0].finish_reason is not None
    world.run()


def test_rows_that_the_others_leave_go_to_the_first_in_turn() -> None:
    world = World(replace(CONFIG, max_rows_per_step=16))
    world.add(request("first", length=100), request("second", length=3, first=3))
    world.step()
    assert (world.rows("first"), world.rows("second")) == (13, 3)


def test_of_several_long_prompts_the_first_keeps_half_and_all_end_in_turn() -> None:
    world = World(replace(CONFIG, max_rows_per_step=8, num_blocks=200))
    names = [f"r{number}" for number in range(5)]
    world.add(*(request(name, length=120, max_tokens=2, first=1 + number) for number, name in enumerate(names)))
    ends: list[str] = []
    while world.engine.has_work:
        running = [name for name in names if name not in ends]
        ends += [delta.request_id for delta in world.step() if delta.finish_reason is not None]
        assert world.rows(running[0]) in (1, 4, 7, 8), "half of the budget, all that decodes leave, or a decode"
    assert sorted(ends) == names
    world.assert_outputs()


def test_a_higher_priority_goes_first() -> None:
    world = World(replace(CONFIG, max_sequences=1))
    world.add(request("low"), request("high", priority=1, first=3))
    world.step()
    assert (world.rows("low"), world.rows("high")) == (0, 6)


def test_waiting_long_enough_beats_a_higher_priority() -> None:
    world = World(replace(CONFIG, max_sequences=1, ageing_s=30.0))
    world.add(request("running", max_tokens=2), request("patient", first=3))
    world.step()
    world.clock.now_s += 31.0
    world.add(request("urgent", priority=1, first=5))
    world.step()
    world.step()
    assert (world.rows("patient"), world.rows("urgent")) == (6, 0)


def test_urgent_requests_without_end_do_not_starve_a_patient_one() -> None:
    world = World(replace(CONFIG, max_sequences=1, ageing_s=10.0))
    world.add(request("patient", max_tokens=1))
    for step in range(40):
        world.add(request(f"urgent{step}", max_tokens=1, priority=2, first=2 + step))
        world.step()
        world.clock.now_s += 1.0
        if world.told["patient", 0].finish_reason is not None:
            break
    # Two priorities are worth 20 s: the urgent ones that came before that go first, and no later one.
    assert 20 <= step <= 22


def test_ten_thousand_wait_and_all_are_served() -> None:
    world = World(replace(CONFIG, max_waiting=10_000, max_sequences=32, max_rows_per_step=256, num_blocks=128))
    for number in range(10_000):
        world.scheduler.add(request(f"r{number}", length=4, max_tokens=1, first=1 + number % 60))
    assert world.scheduler.stats().num_waiting == 10_000
    num_ended = 0
    while world.engine.has_work:
        num_ended += sum(delta.finish_reason is not None for delta in world.engine.step())
    assert num_ended == 10_000
    world.scheduler.check()


def test_times_are_those_of_the_clock() -> None:
    world = World(replace(CONFIG, max_sequences=1))
    world.add(request("first", max_tokens=3), request("second", max_tokens=2, first=3))
    for _ in range(5):
        world.clock.now_s += 1.0
        world.step()
    usage = world.told["second", 0].usage
    assert usage is not None
    # Steps at 1 .. 5 s: the first request has 1-3, the second starts at 4 and ends at 5.
    assert (usage.queue_s, usage.prefill_s, usage.decode_s) == (4.0, 0.0, 1.0)
