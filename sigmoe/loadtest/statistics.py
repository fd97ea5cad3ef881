"""Percentiles and what they are worth.

A percentile is the smallest value with at least that share of the sample at or below it (nearest rank), so it is one
of the values. Its 95% confidence interval is a pair of order statistics: of n independent values the number that lie
below the true percentile q is Binomial(n, q), whatever their distribution. The ranks cut off at most 2.5% on each
side; where even the smallest or largest value does not, that side has no bound and is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_TAIL = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A percentile with its confidence interval."""

    value: float
    low: float | None
    high: float | None


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Nearest rank. At least one value."""
    return ascending[max(0, _ceil(len(ascending) * percent / 100) - 1)]


def estimate(ascending: Sequence[float], percent: float) -> Estimate:
    """The percentile of a sorted sample of at least one value."""
    low, high = interval_ranks(len(ascending), percent / 100)
    return Estimate(
        value=percentile(ascending, percent),
        low=None if low is None else ascending[low - 1],
        high=None if high is None else ascending[high - 1],
    )


def interval_ranks(n: int, q: float) -> tuple[int | None, int | None]:
    """Ranks from 1 of the order statistics that bound quantile q: P(Binomial(n, q) < low) and >= high at most 2.5%."""
    low = _last_rank_within(n, q)
    high = _last_rank_within(n, 1 - q)
    return low or None, n + 1 - high if high else None


def _last_rank_within(n: int, q: float) -> int:
    """The largest r with P(Binomial(n, q) < r) <= 2.5%; 0 if there is none."""
    below = 0.0
    # 12 standard deviations below the mean nothing is left that counts.
    start = max(0, int(n * q - 12 * math.sqrt(n * q * (1 - q)) - 1))
    for r in range(start, n + 1):
        below += _probability(n, q, r)
        if below > _TAIL:
            return r
    return n


def _probability(n: int, q: float, k: int) -> float:
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_choose + k * math.log(q) + (n - k) * math.log1p(-q))


def _ceil(value: float) -> int:
    """Without a step up for 99 * 0.01 and its like."""
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-9 * max(1.0, value) else math.ceil(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """A histogram: `counts[i]` values in [edges[i], edges[i + 1]), the last bin's end included."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(ascending: Sequence[float], most_bins: int = 40) -> Bins:
    """Equal bins from the smallest to the largest value; as many as the root of the sample's size, at most so many."""
    low, high = ascending[0], ascending[-1]
    num = max(1, min(most_bins, round(math.sqrt(len(ascending)))))
    if not high > low:
        return Bins(edges=(low, high), counts=(len(ascending),))
    edges = [low + (high - low) * i / num for i in range(num)] + [high]
    counts = [0] * num
    for value in ascending:
        counts[min(num - 1, int((value - low) / (high - low) * num))] += 1
    return Bins(edges=tuple(edges), counts=tuple(counts))


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Of the sample; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))
