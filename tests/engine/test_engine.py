from __future__ import annotations

import pytest

from engine.engine import Engine
from engine.runner import Foresight, nothing_foreseen
from engine.simulated_runner import SimulatedRunner, simulated_output
from scheduler.plan import SequenceResult, StepPlan, StepResult, StepShape
from scheduler.request import FinishReason, Request, RequestRefused, SamplingParams
from scheduler.scheduler import Scheduler, SchedulerConfig

CONFIG = SchedulerConfig(num_blocks=32, block_size=4, max_rows_per_step=16, max_sequences=4, max_context=100)


def request(request_id: str, length: int = 10, max_tokens: int = 5) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return Request(request_id=request_id, prompt=tuple(range(length)), sampling=sampling)


@pytest.fixture
def engine() -> Engine:
    return Engine(Scheduler(CONFIG, clock=lambda: 0.0), SimulatedRunner(block_size=CONFIG.block_size))


def test_steps_until_there_is_no_work(engine: Engine) -> None:
    asked = request("r", length=40)
    engine.add(asked)
    tokens: list[int] = []
    while engine.has_work:
        for delta in engine.step():
            tokens += delta.token_ids
    assert tuple(tokens) == simulated_output(asked.prompt, asked.sampling)
    assert engine.stats().num_free_blocks == CONFIG.num_blocks


def test_plan_run_and_commit_are_a_step_taken_apart(engine: Engine) -> None:
    engine.add(request("r", max_tokens=1))
    plan = engine.plan()
    assert plan.num_rows == 10
    (delta,) = engine.commit(plan, engine.run(plan))
    assert delta.finish_reason is FinishReason.LENGTH
    assert engine.execute(engine.plan()) == []


def test_an_abort_is_told_by_the_next_step(engine: Engine) -> None:
    engine.add(request("r"))
    engine.step()
    engine.abort("r")
    assert engine.has_work, "its end is still to be told"
    (delta,) = engine.step()
    assert delta.finish_reason is FinishReason.CANCELLED
    assert not engine.has_work
    engine.check_integrity()


def test_a_refusal_reaches_the_caller(engine: Engine) -> None:
    with pytest.raises(RequestRefused, match="prompt"):
        engine.add(request("r", length=0))


def test_a_step_of_a_group_without_work_here_runs_too() -> None:
    plans: list[StepPlan] = []
    engine = Engine(Scheduler(CONFIG, clock=lambda: 0.0), SimulatedRunner(block_size=4, on_step=plans.append))
    assert engine.execute(engine.plan()) == []
    assert [plan.num_rows for plan in plans] == [0]


def test_a_lost_block_is_found_when_the_work_is_done() -> None:
    scheduler = Scheduler(CONFIG, clock=lambda: 0.0)
    engine = Engine(scheduler, SimulatedRunner(block_size=CONFIG.block_size))
    scheduler._tables._pool.acquire(1)
    engine.add(request("r", max_tokens=2))
    engine.step()
    with pytest.raises(AssertionError, match="owners counted, owners found"):
        engine.step()


def test_checks_take_a_hundredth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks one question after the other shall not wait for one behind each answer."""
    scheduler = Scheduler(CONFIG, clock=lambda: 0.0)
    engine = Engine(scheduler, SimulatedRunner(block_size=CONFIG.block_size))
    now_s, checks = 0.0, []

    def check() -> None:
        nonlocal now_s
        checks.append(now_s)
        now_s += 2.0

    monkeypatch.setattr(scheduler, "check", check)
    monkeypatch.setattr("engine.engine.time.perf_counter", lambda: now_s)
    for at_s in (1.0, 4.0, 202.0, 204.0, 300.0):
        now_s = at_s
        engine.check_when_idle()
    assert checks == [1.0, 204.0]
    engine.add(request("r", max_tokens=2))
    now_s = 900.0
    engine.check_when_idle()
    assert len(checks) == 2, "it is not idle"


class VerifyingRunner:
    """Yields several tokens for a row of logits, as a verify would."""

    def shape(self, plan: StepPlan) -> StepShape | None:
        return None

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        return None

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        return StepResult(
            step_id=plan.step_id, sequences=tuple(SequenceResult(token_ids=(1, 2)) for _ in plan.sequences)
        )


def test_more_tokens_than_rows_of_logits_are_a_mistake_that_stops() -> None:
    engine = Engine(Scheduler(CONFIG, clock=lambda: 0.0), VerifyingRunner())
    engine.add(request("r"))
    with pytest.raises(AssertionError, match="2 tokens from 1 rows of logits"):
        engine.step()
