"""Every way in which a sequence ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.request import FinishReason
from tests.scheduler.world import CONFIG, ERROR_TOKEN, World, asking, prompt, request


def test_at_max_tokens() -> None:
    world = World()
    world.add(request("r", max_tokens=1))
    world.run()
    assert world.told["r", 0].finish_reason is FinishReason.LENGTH
    assert world.told["r", 0].num_deltas == 1


@pytest.mark.parametrize("room", [1, 2])
def test_at_the_end_of_the_context(room: int) -> None:
    world = World(replace(CONFIG, max_context=30))
    world.add(request("r", length=30 - room, max_tokens=9))
    world.run()
    assert len(world.output("r")) == room
    assert world.told["r", 0].finish_reason is FinishReason.LENGTH


def test_at_an_end_of_text_which_is_told() -> None:
    world = World()
    world.add(request("free", max_tokens=12))
    world.run()
    end = world.output("free")[5]
    world = World(replace(CONFIG, eos_token_ids=(end,)))
    world.add(request("r", max_tokens=12), asking(request("deaf", max_tokens=12), ignore_eos=True))
    world.run()
    assert world.told["r", 0].finish_reason is FinishReason.STOP
    assert world.output("r")[-1] == end
    assert world.told["deaf", 0].finish_reason is FinishReason.LENGTH
    assert len(world.output("deaf")) == 12
    world.assert_outputs()


def test_at_a_stop_token_but_not_before_min_tokens() -> None:
    world = World()
    world.add(request("free", max_tokens=12))
    world.run()
    stop = world.output("free")[2]
    stopped = asking(request("r", max_tokens=12), stop_token_ids=(stop,))
    world.add(stopped, replace(asking(stopped, min_tokens=8), request_id="longer"))
    world.run()
    assert world.told["r", 0].finish_reason is FinishReason.STOP
    assert world.output("r")[-1] == stop
    assert len(world.output("longer")) > 8 or world.told["longer", 0].finish_reason is FinishReason.LENGTH
    assert stop not in world.output("longer")[:8]
    world.assert_outputs()


def test_after_a_prompt_that_is_only_scored() -> None:
    world = World(replace(CONFIG, max_rows_per_step=8))
    scored = asking(request("r", length=20, max_tokens=0), num_prompt_logprobs=0)
    world.add(scored)
    world.run()
    told = world.told["r", 0]
    assert (told.finish_reason, told.token_ids, told.num_deltas) == (FinishReason.LENGTH, [], 1)
    assert [score.token_id for score in told.prompt_logprobs] == [*scored.prompt[1:]]
    assert all(planned.num_logit_rows == 0 for plan in world.plans for planned in plan.sequences)


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    world = World()
    world.add(asking(request("r", length=1, max_tokens=0), num_prompt_logprobs=0))
    world.run()
    assert world.told["r", 0].finish_reason is FinishReason.LENGTH
    assert world.told["r", 0].prompt_logprobs == []


def test_by_cancellation_within_one_step_waiting_or_running() -> None:
    world = World(replace(CONFIG, max_sequences=1))
    world.add(request("running", max_tokens=20), request("waiting", first=3))
    world.step()
    world.engine.abort("running")
    world.engine.abort("waiting")
    world.step()
    assert {told.finish_reason for told in world.told.values()} == {FinishReason.CANCELLED}
    assert len(world.output("running")) == 1
    assert world.plans[-1].sequences == ()
    world.run()


def test_by_cancellation_while_its_step_is_in_flight() -> None:
    world = World()
    world.add(request("r", max_tokens=20), request("other", max_tokens=20, first=3))
    world.step()
    plan = world.engine.plan()
    result = world.engine.run(plan)
    world.engine.abort("r")
    world.hear(world.engine.commit(plan, result))
    world.scheduler.check()
    assert world.told["r", 0].finish_reason is FinishReason.CANCELLED
    assert len(world.output("r")) == 1, "what the step in flight yielded is dropped"
    assert len(world.output("other")) == 2
    world.run()
    world.assert_outputs()


def test_an_id_may_be_used_again_while_its_old_step_is_in_flight() -> None:
    world = World()
    world.add(request("r", length=9, max_tokens=20))
    plan = world.engine.plan()
    result = world.engine.run(plan)
    world.engine.abort("r")
    again = request("r", length=5, max_tokens=2, first=3)
    world.engine.add(again)
    world.hear(world.engine.commit(plan, result))
    assert world.told["r", 0].finish_reason is FinishReason.CANCELLED
    world.note(again)
    world.run()
    assert len(world.output("r")) == 2
    world.assert_outputs()


def test_cancelling_nothing_is_nothing() -> None:
    world = World()
    world.engine.abort("unknown")
    assert not world.engine.has_work
    world.add(request("r"))
    world.run()
    world.engine.abort("r")
    assert not world.engine.has_work


def test_cancelling_twice_tells_once() -> None:
    world = World()
    world.add(request("r"))
    world.engine.abort("r")
    world.engine.abort("r")
    world.run()
    assert world.told["r", 0].num_deltas == 1


def test_all_sequences_of_a_request_are_cancelled_those_kept_back_too() -> None:
    world = World()
    world.add(replace(request("r", max_tokens=20), num_sequences=3))
    world.engine.abort("r")
    world.run()
    assert [world.told["r", index].finish_reason for index in range(3)] == [FinishReason.CANCELLED] * 3


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_by_its_deadline_within_one_step(num_steps: int) -> None:
    world = World()
    world.add(replace(request("r", max_tokens=50), deadline_s=world.clock.now_s + 5.0, num_sequences=2))
    world.add(request("other", max_tokens=10, first=3))
    for _ in range(num_steps):
        world.step()
    world.clock.now_s += 4.99
    world.step()
    assert world.told["r", 0].finish_reason is None
    world.clock.now_s += 0.01
    world.step()
    assert [world.told["r", index].finish_reason for index in range(2)] == [FinishReason.DEADLINE] * 2
    world.run()
    world.assert_outputs()


def test_a_request_that_comes_too_late_ends_without_running() -> None:
    world = World()
    world.add(replace(request("r"), deadline_s=world.clock.now_s - 1.0))
    world.run()
    assert world.told["r", 0].finish_reason is FinishReason.DEADLINE
    assert [plan.num_rows for plan in world.plans] == [0]


def test_by_an_error_of_its_own_which_leaves_the_others_alone() -> None:
    world = World()
    world.add(replace(request("bad"), prompt=(*prompt(5), ERROR_TOKEN)), request("good", first=3))
    world.run()
    assert world.told["bad", 0].finish_reason is FinishReason.ERROR
    assert "was to fail" in world.told["bad", 0].error
    assert world.told["good", 0].finish_reason is FinishReason.LENGTH
    world.assert_outputs()


def test_siblings_of_an_erring_sequence_go_on_alone() -> None:
    world = World()
    world.add(replace(request("bad", first=3), prompt=(*prompt(5), ERROR_TOKEN), num_sequences=2))
    world.run()
    assert [world.told["bad", index].finish_reason for index in range(2)] == [FinishReason.ERROR] * 2


def test_a_resumed_sequence_tells_what_follows_and_counts_what_it_had() -> None:
    world = World()
    world.add(asking(replace(request("whole", max_tokens=9), num_sequences=2), temperature=1.0, seed=5))
    world.run()
    had = world.output("whole", 1)[:4]
    rest = replace(world.requests["whole"], request_id="rest", num_sequences=1, first_sequence_index=1, resumed=had)
    world.add(rest)
    world.run()
    assert had + world.output("rest", 1) == world.output("whole", 1)
    usage = world.told["rest", 1].usage
    assert usage is not None
    assert (usage.num_prompt_tokens, usage.num_output_tokens) == (6, 9)


def test_a_resumed_sequence_that_was_at_its_end_ends_at_once() -> None:
    world = World()
    world.add(replace(request("r", max_tokens=3), resumed=(4, 5, 6)))
    stopped = asking(replace(request("stopped", max_tokens=9), resumed=(4, 5)), stop_token_ids=(5,))
    world.add(stopped)
    assert world.engine.has_work
    deltas = world.step()
    assert {(delta.request_id, delta.finish_reason) for delta in deltas} == {
        ("r", FinishReason.LENGTH),
        ("stopped", FinishReason.STOP),
    }
    assert world.plans[-1].sequences == ()


def test_prompt_scores_are_not_told_again_to_a_resumed_sequence() -> None:
    world = World()
    world.add(request("whole", max_tokens=5))
    world.run()
    resumed = replace(request("r", max_tokens=5), resumed=world.output("whole")[:2])
    world.add(asking(resumed, num_prompt_logprobs=0))
    world.run()
    assert world.told["r", 0].prompt_logprobs == []
    world.assert_outputs()
