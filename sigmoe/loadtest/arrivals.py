"""When requests are meant to be sent in an open loop: times drawn from a renewal process, thinned during a ramp."""

from __future__ import annotations

import enum
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


class Process(enum.Enum):
    """How the gaps between arrivals are drawn."""

    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """`rate` per second. `burstiness` is of gamma alone: the variance of a gap over its squared mean; 1 is Poisson."""

    rate: float
    process: Process = Process.POISSON
    burstiness: float = 1.0

    def times(self, rng: random.Random, ramp_s: float = 0.0) -> Iterator[float]:
        """Ascending times from 0 on, without end. During the ramp the rate grows from 0 in a straight line.

        Gaps of mean 1 are summed and sent through the inverse of the expected number of arrivals by time t, which is
        rate * t^2 / (2 * ramp) within the ramp and rate * (t - ramp / 2) after it.
        """
        for expected in itertools.accumulate(self._gaps(rng)):
            if expected <= self.rate * ramp_s / 2:
                yield math.sqrt(2 * ramp_s * expected / self.rate)
            else:
                yield expected / self.rate + ramp_s / 2

    def _gaps(self, rng: random.Random) -> Iterator[float]:
        while True:
            if self.process is Process.CONSTANT:
                yield 1.0
            elif self.process is Process.POISSON:
                yield rng.expovariate(1.0)
            else:
                yield rng.gammavariate(1 / self.burstiness, self.burstiness)
