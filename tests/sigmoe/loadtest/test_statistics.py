"""Percentiles and their intervals against known answers."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from sigmoe.loadtest.statistics import deviation, estimate, histogram, interval_ranks, percentile


def test_percentiles_are_nearest_ranks() -> None:
    values = [15.0, 20.0, 35.0, 40.0, 50.0]  # the textbook's example
    assert [percentile(values, p) for p in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    hundred = [float(i) for i in range(1, 101)]
    assert [percentile(hundred, p) for p in (50, 90, 99, 99.9)] == [50, 90, 99, 100]
    assert percentile([7.0], 99.9) == 7.0


def binomial(n: int, q: Fraction, below: int) -> Fraction:
    """P(Binomial(n, q) < below), exactly."""
    return sum((math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(below)), Fraction(0))


@pytest.mark.parametrize("n", [1, 5, 6, 10, 37, 100, 400])
@pytest.mark.parametrize("q", [Fraction(1, 2), Fraction(9, 10), Fraction(99, 100), Fraction(999, 1000)])
def test_ranks_are_the_narrowest_with_at_most_a_fortieth_on_each_side(n: int, q: Fraction) -> None:
    low, high = interval_ranks(n, float(q))
    tail = Fraction(1, 40)
    if low is None:
        assert binomial(n, q, 1) > tail
    else:
        assert binomial(n, q, low) <= tail < binomial(n, q, low + 1)
    if high is None:
        assert 1 - binomial(n, q, n) > tail
    else:
        assert 1 - binomial(n, q, high) <= tail < 1 - binomial(n, q, high - 1)


def test_ranks_known_from_tables() -> None:
    assert interval_ranks(10, 0.5) == (2, 9)
    assert interval_ranks(100, 0.5) == (40, 61)
    assert interval_ranks(5, 0.5) == (None, None)
    for n, q in ((368, 0.99), (3688, 0.999)):  # what docs/loadtest.md says of them
        assert None not in interval_ranks(n, q) and None in interval_ranks(n - 1, q)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, truth, covered = random.Random(7), -math.log(0.1), 0  # the p90 of an exponential distribution
    for _ in range(1000):
        found = estimate(sorted(rng.expovariate(1.0) for _ in range(200)), 90.0)
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 935 <= covered <= 985, "of 1,000 intervals of 95% or a little more"


def test_histograms_hold_every_value() -> None:
    rng = random.Random(1)
    values = sorted(rng.gauss(0, 1) for _ in range(1000))
    bins = histogram(values)
    assert sum(bins.counts) == 1000 and len(bins.edges) == len(bins.counts) + 1
    assert (bins.edges[0], bins.edges[-1]) == (values[0], values[-1])
    assert histogram([2.0, 2.0]).counts == (2,)


def test_deviation_is_of_the_sample() -> None:
    assert deviation([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx(math.sqrt(32 / 7))
    assert deviation([3.0]) == 0.0
