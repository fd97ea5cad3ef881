"""The rank's loop: inbox to outbox, cancel, deadlines, refusals, sleep, loss; alone and in a group."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from engine.lockstep import GroupStep, LocalLockstep, StepNeeds
from engine.rank import STOPPED, RankLost
from engine.runner import Foresight, Runner, nothing_foreseen
from engine.simulated_runner import SimulatedRunner, simulated_output
from scheduler.plan import GroupLoad, StepPlan, StepResult, StepShape
from scheduler.request import FinishReason, SamplingParams
from tests.engine.worlds import (
    BLOCK_SIZE,
    CONFIG,
    DEADLINE_S,
    Clock,
    collect,
    ending,
    greedy,
    group_locksteps,
    group_of_ranks,
    make_rank,
    one_rank,
    reason_of_end,
    running,
    tokens,
)


class CountingLockstep(LocalLockstep):
    """Counts turns, and lets a test wait until the loop goes to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.num_turns = 0
        self.asleep = threading.Semaphore(0)

    def agree(self, needs: StepNeeds) -> GroupStep:
        self.num_turns += 1
        return super().agree(needs)

    def sleep(self) -> None:
        self.asleep.release()
        super().sleep()


class Gate:
    """Holds every step until the test lets it pass."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __call__(self, plan: StepPlan) -> None:
        self.reached.release()
        assert self.open.acquire(timeout=DEADLINE_S), "the test never opened the gate"


class BrokenRunner:
    """Fails at the first step that has rows."""

    def shape(self, plan: StepPlan) -> StepShape | None:
        return None

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        return None

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        if plan.num_rows:
            raise FloatingPointError("the numbers are off")
        return StepResult(step_id=plan.step_id, sequences=())


def test_requests_run_to_their_end() -> None:
    requests = [greedy(f"r{n}", max_tokens=n, prompt=tuple(range(n, 2 * n))) for n in range(1, 8)]
    with one_rank() as rank:
        for request in requests:
            rank.submit(request)
        deltas = collect(rank, {request.request_id for request in requests})
        status = rank.status()
    for request in requests:
        assert tokens(deltas[request.request_id]) == simulated_output(request.prompt, request.sampling)
        assert ending(deltas[request.request_id]) is FinishReason.LENGTH
    assert status.num_tokens == sum(range(1, 8))
    assert status.stats.num_running == 0 and status.num_steps > 0


def test_an_orderly_stop_is_told_to_every_poll() -> None:
    with one_rank() as rank:
        rank.stop()
        assert reason_of_end(rank) == STOPPED
        for _ in range(2):
            with pytest.raises(RankLost):
                rank.poll(0.0)
        with pytest.raises(RankLost):
            rank.submit(greedy("late"))
        rank.cancel("unknown")


def test_deltas_are_handed_out_before_the_end_is_told() -> None:
    with one_rank() as rank:
        rank.submit(greedy("a", max_tokens=2))
        collect(rank, {"a"})
        rank.submit(greedy("b", max_tokens=3))
        while rank.status().num_tokens < 5:
            pass
        rank.stop()
        assert tokens(list(rank.poll(DEADLINE_S))) == simulated_output((1, 2, 3), greedy("b", max_tokens=3).sampling)
        assert reason_of_end(rank) == STOPPED


def test_a_cancel_takes_effect_within_one_step() -> None:
    gate = Gate()
    with one_rank(SimulatedRunner(block_size=BLOCK_SIZE, on_step=gate)) as rank:
        rank.submit(greedy("long", max_tokens=50))
        assert gate.reached.acquire(timeout=DEADLINE_S)
        rank.cancel("long")  # the first step is under way
        gate.open.release(2)  # it, and the one that has the ending to tell
        deltas = collect(rank, {"long"})["long"]
        assert ending(deltas) is FinishReason.CANCELLED
        assert len(tokens(deltas)) <= 1
        gate.open.release(1000)


def test_the_deadline_counts_from_submission_on_the_ranks_clock() -> None:
    clock, gate = Clock(), Gate()
    with one_rank(SimulatedRunner(block_size=BLOCK_SIZE, on_step=gate), clock) as rank:
        rank.submit(dataclasses.replace(greedy("late", max_tokens=50), deadline_s=5.0))
        assert gate.reached.acquire(timeout=DEADLINE_S)
        clock.now_s += 4.0
        gate.open.release()
        assert gate.reached.acquire(timeout=DEADLINE_S), "still within its deadline"
        clock.now_s += 2.0
        gate.open.release(1000)
        assert ending(collect(rank, {"late"})["late"]) is FinishReason.DEADLINE


def test_a_refused_request_ends_once_for_each_sequence() -> None:
    impossible = dataclasses.replace(greedy("empty"), prompt=(), num_sequences=3)
    with one_rank() as rank:
        rank.submit(impossible)
        deltas = collect(rank, {"empty"})["empty"]
    assert [delta.sequence_index for delta in deltas] == [0, 1, 2]
    assert {delta.finish_reason for delta in deltas} == {FinishReason.ERROR}
    assert all("prompt" in delta.error for delta in deltas)


def test_a_refused_request_leaves_others_alone() -> None:
    with one_rank() as rank:
        rank.submit(dataclasses.replace(greedy("bad"), prompt=(-1,)))
        rank.submit(greedy("good"))
        deltas = collect(rank, {"bad", "good"})
    assert tokens(deltas["good"]) == simulated_output((1, 2, 3), SamplingParams(max_tokens=5, temperature=0.0))


def test_requests_beyond_the_queue_end_and_the_others_run() -> None:
    rank = make_rank(LocalLockstep())
    requests = [greedy(f"r{number}", max_tokens=2) for number in range(CONFIG.max_waiting + 10)]
    for request in requests:  # before the loop starts, so that they meet it all at once
        rank.submit(request)
    with running(rank):
        deltas = collect(rank, {request.request_id for request in requests})
    endings = [ending(deltas[request.request_id]) for request in requests]
    assert endings == [FinishReason.LENGTH] * CONFIG.max_waiting + [FinishReason.ERROR] * 10
    assert "wait" in deltas[requests[-1].request_id][-1].error


def test_an_idle_rank_does_nothing() -> None:
    """Turns, not time: a loop that spins would take many more."""
    lockstep = CountingLockstep()
    with running(make_rank(lockstep)) as rank:
        assert lockstep.asleep.acquire(timeout=DEADLINE_S)
        assert lockstep.num_turns == 1
        assert rank.poll(0.05) == ()
        assert lockstep.num_turns == 1, "the loop turned though nobody rang"
        rank.submit(greedy("a", max_tokens=3))
        collect(rank, {"a"})
        # The ring of the submission may end one more sleep after the work is done.
        assert lockstep.asleep.acquire(timeout=DEADLINE_S)
        assert lockstep.num_turns <= 6


def test_an_idle_group_does_nothing() -> None:
    locksteps = group_locksteps(2)
    with running(make_rank(locksteps[0])) as first, running(make_rank(locksteps[1], number=1)) as second:
        for lockstep in locksteps:
            assert lockstep.asleep.acquire(timeout=DEADLINE_S)
        assert [first.poll(0.05), second.poll(0.05)] == [(), ()]
        assert [lockstep.num_turns for lockstep in locksteps] == [1, 1], "a loop turned though nobody rang"
        second.submit(greedy("a", max_tokens=3))
        collect(second, {"a"})
        for lockstep in locksteps:
            assert lockstep.asleep.acquire(timeout=DEADLINE_S)
        assert locksteps[0].num_turns <= 6


def test_a_broken_step_loses_the_rank_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with one_rank(BrokenRunner()) as rank:
        rank.submit(greedy("a"))
        assert reason_of_end(rank) == "FloatingPointError: the numbers are off"
    assert "event=rank_lost rank=0" in caplog.text


def test_every_rank_of_a_group_serves_its_own_requests() -> None:
    with group_of_ranks(3) as ranks:
        for number, rank in enumerate(ranks):
            rank.submit(greedy(f"r{number}", max_tokens=4 + number, prompt=(number, 7)))
        for number, rank in enumerate(ranks):
            deltas = collect(rank, {f"r{number}"})[f"r{number}"]
            sampling = SamplingParams(max_tokens=4 + number, temperature=0.0)
            assert tokens(deltas) == simulated_output((number, 7), sampling)


def test_idle_ranks_step_along_while_one_works_and_all_sleep_and_wake_again() -> None:
    counts = [0, 0]

    def counting(number: int) -> Runner:
        def on_step(plan: StepPlan) -> None:
            counts[number] += 1

        return SimulatedRunner(block_size=BLOCK_SIZE, on_step=on_step)

    with group_of_ranks(2, [counting(0), counting(1)]) as ranks:
        for turn in range(6):  # sleep and wake, from either side
            rank = ranks[turn % 2]
            rank.submit(greedy(f"r{turn}", max_tokens=3))
            collect(rank, {f"r{turn}"})
    assert counts[0] == counts[1] >= 18


def test_a_step_knows_what_all_ranks_have_in_it() -> None:
    plans: list[list[StepPlan]] = [[], []]
    runners: list[Runner] = [SimulatedRunner(block_size=BLOCK_SIZE, on_step=mine.append) for mine in plans]
    with group_of_ranks(2, runners) as ranks:
        ranks[0].submit(dataclasses.replace(greedy("r", max_tokens=3), num_sequences=2))
        collect(ranks[0], {"r"})
    assert all(plan.group is not None for mine in plans for plan in mine)
    for plan, beside in zip(*plans, strict=True):
        assert not beside.sequences
        load = GroupLoad(num_rows=plan.num_rows / 2, num_sequences=len(plan.sequences) / 2)
        assert plan.group == beside.group == load
    alone: list[StepPlan] = []
    with one_rank(SimulatedRunner(block_size=BLOCK_SIZE, on_step=alone.append)) as rank:
        rank.submit(greedy("r", max_tokens=3))
        collect(rank, {"r"})
    assert {plan.group for plan in alone} == {None}


@pytest.mark.parametrize("stopper", [0, 1])
def test_one_stop_ends_the_whole_group(stopper: int) -> None:
    with group_of_ranks(2) as ranks:
        ranks[stopper].stop()
        assert [reason_of_end(rank) for rank in ranks] == [STOPPED, STOPPED]
