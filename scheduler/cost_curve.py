"""What something costs by its size, from measurements that fade."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

_PER_OCTAVE = 4  # buckets of sizes; up to 8 each size has its own
_DECAY = 0.97  # of what was known, by each new measurement
_FADING = 0.9985  # of what a size's measurements weigh, by each one of any size
_MOST_RATIO = 3.0  # that one measurement counts for, either way: the machine was busy elsewhere for a moment
_LEAST_S = 1e-9  # a part of a step that took no time by the clock
_SLOPE = 0.1  # of the time for as much more as there is, while only one size is measured
_STALE = 16  # measurements that a curve may lag behind: drawing it anew takes longer than it changes in so many
_FEW = 4  # measurements of a size, before which each one draws it anew
_MOST_WEIGHT = 10.0  # of a size among those that it contradicts


def bucket(size: float) -> int:
    """Sizes of one bucket are not told apart."""
    return round(size) if size <= 8 else 8 + round(_PER_OCTAVE * math.log2(size / 8))


def tamed(ratio: float, most: float) -> float:
    """A ratio, as far as it is not further from 1 than `most`: something else was going on."""
    return min(max(ratio, 1.0 / most), most)


@dataclass(slots=True)
class _Average:
    """A fading geometric mean, and where it was taken.

    Not an arithmetic one: the pace follows ratios, and what the two make of the same noise would drift apart.
    """

    at: float
    seconds: float
    count: float = 0.0  # of measurements, fading
    added_at: int = 0  # the measurement of the curve that was added last

    def move(self, at: float, ratio: float, number: int, count: float = 1.0) -> None:
        """Take in a measurement that was `ratio` times the mean."""
        self.count = self.count * _FADING ** (number - self.added_at) + count
        self.added_at = number
        # A single slow step (the machine was busy elsewhere) shall not decide.
        ratio = tamed(ratio, _MOST_RATIO)
        weight = max(1.0 - _DECAY**count, count / self.count)
        self.seconds *= ratio**weight
        self.at += weight * (at - self.at)


class CostCurve:
    """Seconds by size, from averages in buckets: more never seems cheaper."""

    def __init__(self) -> None:
        self._averages: dict[int, _Average] = {}
        self._ats: list[float] = []
        self._seconds: list[float] = []
        self._num_new = 0  # measurements since the points were drawn
        self._number = 0  # of the last one

    def observe(self, size: float, seconds: float, count: float = 1.0) -> float:
        """Take in a measurement that counts for so many. Returns how many times what was known of that size it was."""
        seconds = max(seconds, _LEAST_S)
        average = self._averages.setdefault(bucket(size), _Average(size, seconds, added_at=self._number))
        ratio = seconds / average.seconds
        self._move(average, size, ratio, count)
        return ratio

    def knows(self, size: float) -> bool:
        """Whether about that size was measured."""
        return bucket(size) in self._averages

    def move(self, size: float, ratio: float, count: float = 1.0) -> None:
        """Take in a measurement of a size that is known, that was `ratio` times that."""
        self._move(self._averages[bucket(size)], size, ratio, count)

    def _move(self, average: _Average, size: float, ratio: float, count: float) -> None:
        self._number += 1
        self._num_new += 1 if average.count >= _FEW else _STALE
        average.move(size, ratio, self._number, count)

    def seconds(self, size: float) -> float | None:
        """On the line through the two points next to `size`; None where nothing is known."""
        return self._line(size)[0] if self._averages else None

    def steepness(self, size: float) -> float:
        """What one more adds there, as a share of the seconds; 0 where nothing is known."""
        if not self._averages:
            return 0.0
        seconds, slope = self._line(size)
        return slope / seconds

    def _line(self, size: float) -> tuple[float, float]:
        """Seconds and slope at `size`."""
        if self._num_new >= _STALE:
            self._pool()
        ats, seconds = self._ats, self._seconds
        if len(ats) == 1:
            left, slope = 0, _SLOPE * seconds[0] / ats[0]
        else:
            right = min(max(bisect_left(ats, size), 1), len(ats) - 1)
            left = right - 1
            slope = (seconds[right] - seconds[left]) / max(ats[right] - ats[left], 1e-9)
        return max(seconds[left] + slope * (size - ats[left]), 0.2 * seconds[left]), slope

    def _pool(self) -> None:
        """Average neighbours that contradict the order (pool adjacent violators), by their numbers of measurements."""
        averages = sorted(self._averages.values(), key=lambda average: average.at)
        pools: list[tuple[float, float, int]] = []  # weight, weighted seconds, averages
        for average in averages:
            weight = min(average.count, _MOST_WEIGHT)
            total, num = weight * average.seconds, 1
            while pools and pools[-1][1] * weight >= total * pools[-1][0]:
                before = pools.pop()
                weight, total, num = weight + before[0], total + before[1], num + before[2]
            pools.append((weight, total, num))
        self._num_new = 0
        self._ats = [average.at for average in averages]
        self._seconds = [total / weight for weight, total, num in pools for _ in range(num)]
