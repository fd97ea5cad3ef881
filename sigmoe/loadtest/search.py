"""Finds the highest rate that keeps given objectives: doubling or halving until one side is known, then bisection."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sigmoe.loadtest.document import Level, Search, Trial
from sigmoe.loadtest.expressions import Expression

_MOST_HALVINGS = 10
MOST_FAILED = 0.01  # share of requests that may fail where no objective speaks of error_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Where to look, and how exactly: the answer is within `precision` of a rate that failed."""

    first: float = 1.0
    most: float = 10_000.0
    precision: float = 0.05


Try = Callable[[float], Awaitable[tuple[bool, str] | None]]  # None: it was interrupted


async def find_max(attempt: Try, within: Range) -> tuple[float | None, bool, list[Trial]]:
    """(highest rate that was kept, whether a higher one failed, trials in order)."""
    trials: list[Trial] = []
    best: float | None = None
    worst: float | None = None
    rate = min(within.first, within.most)
    while True:
        outcome = await attempt(rate)
        if outcome is None:
            break
        trials.append(Trial(rate=rate, is_kept=outcome[0], why=outcome[1]))
        if outcome[0]:
            best = rate
        else:
            worst = rate
        following = _next(best, worst, within)
        if following is None:
            break
        rate = following
    return best, worst is not None, trials


def _next(best: float | None, worst: float | None, within: Range) -> float | None:
    """What to try now; None where the answer is known well enough."""
    if best is None:
        assert worst is not None, "nothing was tried"
        return worst / 2 if worst > within.first / 2**_MOST_HALVINGS else None
    if worst is None:
        return min(best * 2, within.most) if best < within.most else None
    if worst / best <= 1 + within.precision:
        return None
    digits = max(3, 2 - math.floor(math.log10(within.precision)))  # 152.2, not 152.218503
    middle = float(f"{math.sqrt(best * worst):.{digits}g}")
    return middle if best < middle < worst else None


def judge(level: Level, objectives: Sequence[Expression]) -> tuple[bool, str]:
    """Whether a level keeps them, and why not.

    It must also keep up: a server whose batch is full may give each token in time while its queue grows for ever. What
    is under way may grow within the window by 2% of the requests, and by chance: twice the root of what was under way
    at its beginning and end together, since the difference of two counts varies as much as their sum.
    """
    rates, num = level.rates, level.counts.measured
    if not level.counts.ok:
        return False, "no request was answered"
    for objective in objectives:
        value = objective.value_of(level)
        if value is None or not objective.holds(value):
            return False, f"{objective.text}: {'' if value is None else 'it is '}{objective.shown(value)}"
    grown = rates.in_flight_end - rates.in_flight_start
    if grown > 0.02 * num + 2 * math.sqrt(rates.in_flight_start + rates.in_flight_end + 1):
        return False, f"it does not keep up: {grown} of {num} requests piled up"
    if not any(objective.name == "error_rate" for objective in objectives) and rates.error_ratio > MOST_FAILED:
        return False, f"{100 * rates.error_ratio:.1f}% of the requests failed or were not finished"
    return True, "kept"


def as_document(objectives: Sequence[Expression], found: tuple[float | None, bool, list[Trial]]) -> Search:
    """For the result."""
    best, is_bounded, trials = found
    texts = tuple(objective.text for objective in objectives)
    return Search(objectives=texts, best_rate=best, is_bounded=is_bounded, trials=tuple(trials))
