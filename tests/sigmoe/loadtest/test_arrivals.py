"""Arrivals have the distribution that was asked for."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from sigmoe.loadtest.arrivals import Arrivals, Process

NUM = 20_000


def gaps(arrivals: Arrivals, seed: int = 3) -> list[float]:
    times = list(itertools.islice(arrivals.times(random.Random(seed)), NUM))
    return [times[0], *(later - earlier for earlier, later in itertools.pairwise(times))]


def kolmogorov_smirnov(sample: list[float], cdf: Callable[[float], float]) -> float:
    ascending = sorted(sample)
    n = len(ascending)
    return max(max((i + 1) / n - cdf(value), cdf(value) - i / n) for i, value in enumerate(ascending))


def test_poisson_gaps_are_exponential() -> None:
    found = kolmogorov_smirnov(gaps(Arrivals(rate=5.0)), lambda x: 1 - math.exp(-5 * x))
    assert found < 1.63 / math.sqrt(NUM), "rejected at 1%"


def test_poisson_counts_have_the_variance_of_their_mean() -> None:
    times = itertools.takewhile(lambda t: t < 2000, Arrivals(rate=5.0).times(random.Random(1)))
    counts = [0] * 2000
    for time in times:
        counts[int(time)] += 1
    mean = sum(counts) / len(counts)
    variance = sum((count - mean) ** 2 for count in counts) / (len(counts) - 1)
    assert mean == pytest.approx(5.0, abs=4 * math.sqrt(5 / 2000))
    assert variance / mean == pytest.approx(1.0, abs=4 * math.sqrt(2 / 2000))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_has_the_rate_and_the_burstiness(burstiness: float) -> None:
    found = gaps(Arrivals(rate=2.0, process=Process.GAMMA, burstiness=burstiness))
    mean = sum(found) / NUM
    assert mean == pytest.approx(0.5, rel=4 * math.sqrt(burstiness / NUM))
    variance = sum((gap - mean) ** 2 for gap in found) / (NUM - 1)
    assert variance / mean**2 == pytest.approx(burstiness, rel=0.12)


def test_gamma_of_one_is_poisson() -> None:
    found = gaps(Arrivals(rate=5.0, process=Process.GAMMA, burstiness=1.0))
    assert kolmogorov_smirnov(found, lambda x: 1 - math.exp(-5 * x)) < 1.63 / math.sqrt(NUM)


def test_constant_is_exact() -> None:
    assert list(itertools.islice(Arrivals(rate=4.0, process=Process.CONSTANT).times(random.Random(0)), 3)) == [
        0.25,
        0.5,
        0.75,
    ]


def test_the_ramp_grows_in_a_straight_line() -> None:
    arrivals = Arrivals(rate=100.0, process=Process.CONSTANT)
    times = list(itertools.takewhile(lambda t: t < 30, arrivals.times(random.Random(0), ramp_s=10.0)))
    by_second = [sum(int(t) == second for t in times) for second in range(30)]
    # the expected number in second s of the ramp is rate * (s + 1/2) / ramp
    assert all(abs(by_second[s] - 100 * (s + 0.5) / 10) <= 1 for s in range(10)), by_second
    assert all(abs(count - 100) <= 1 for count in by_second[10:]), by_second


def test_the_same_seed_gives_the_same_times() -> None:
    first, second, other = (gaps(Arrivals(rate=1.0), seed)[:50] for seed in (1, 1, 2))
    assert first == second != other
