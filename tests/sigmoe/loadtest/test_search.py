"""The search finds the capacity of a server whose capacity is known."""

from __future__ import annotations

import pytest

from sigmoe.loadtest import search as search_module
from sigmoe.loadtest.arrivals import Arrivals, Process
from sigmoe.loadtest.document import Search
from sigmoe.loadtest.expressions import level_expression
from sigmoe.loadtest.load import Open, Schedule
from sigmoe.loadtest.plan import Finding
from sigmoe.loadtest.search import Range
from tests.sigmoe.loadtest.levels import document
from tests.sigmoe.loadtest.virtual_time import SimulatedServer

CAPACITY = 8.0  # requests per second: 4 slots, half a second each
CONSTANT = Open(arrivals=Arrivals(rate=1.0, process=Process.CONSTANT))


def search(*objectives: str, first: float = 1.0, most: float = 10_000.0, **server: float) -> Search:
    target = SimulatedServer(**{"slots": 4, "num_tokens": 10, "token_s": 0.05, **server})  # type: ignore[arg-type]
    finding = Finding(
        objectives=[level_expression(text, "--find-max") for text in objectives], within=Range(first=first, most=most)
    )
    schedule = Schedule(warmup_s=5.0, duration_s=60.0, drain_s=5.0)
    found = document(target, CONSTANT, schedule=schedule, finding=finding).search
    assert found is not None
    return found


@pytest.mark.parametrize("first", [0.3, 1.0, 100.0])
def test_the_highest_rate_is_found_from_below_and_from_above(first: float) -> None:
    found = search("ttft_p99 < 1s", first=first)
    assert found.best_rate is not None and CAPACITY / 1.05 <= found.best_rate <= CAPACITY * 1.02
    assert found.is_bounded
    lowest_failed = min(trial.rate for trial in found.trials if not trial.is_kept)
    assert lowest_failed / found.best_rate <= 1.05
    assert len(found.trials) <= 14
    assert all(len(f"{trial.rate:.6g}".replace(".", "").strip("0")) <= 4 for trial in found.trials[-2:])


def test_a_queue_that_grows_is_no_success_even_if_each_token_is_in_time() -> None:
    found = search("tpot_p99 < 60ms")
    assert found.best_rate is not None and CAPACITY / 1.05 <= found.best_rate <= CAPACITY * 1.1
    assert any("does not keep up" in trial.why for trial in found.trials)


def test_chance_is_hardly_ever_taken_for_a_queue() -> None:
    objectives, num_refused = [level_expression("ttft_p99 < 1s", "--find-max")], 0
    schedule = Schedule(warmup_s=2.0, duration_s=5.0, drain_s=5.0)
    for seed in range(60):
        server = SimulatedServer(slots=10_000, num_tokens=10, token_s=0.05)
        (level,) = document(server, Open(arrivals=Arrivals(rate=8.0)), schedule=schedule, seed=seed).levels
        num_refused += not search_module.judge(level, objectives)[0]
    assert num_refused <= 1


def test_several_objectives_must_all_be_kept() -> None:
    assert search("ttft_p99 < 1s", "tpot_p99 < 10ms").best_rate is None


def test_an_objective_that_nothing_keeps() -> None:
    found = search("ttft_p99 < 1ms")
    assert found.best_rate is None and found.is_bounded
    assert len(found.trials) == 11 and found.trials[0].why == "ttft_p99 < 1ms: it is 50.0 ms"


def test_the_end_of_the_range_is_said_to_be_no_bound() -> None:
    found = search("ttft_p99 < 1s", most=4.0)
    assert found.best_rate == 4.0 and not found.is_bounded
