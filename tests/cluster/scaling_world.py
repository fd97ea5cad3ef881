"""A made-up service under the autoscaler: a queue, replicas that take time to start, a clock that jumps."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.autoscale import Autoscaler, Decision, Load, ScalingPolicy

START_S = 20.0  # from wanted to serving


@dataclass
class ScalingWorld:
    """`rate(t)` sequences arrive a second; each runs `service_s`, a replica runs `sequences_per_replica` at a time."""

    policy: ScalingPolicy
    rate: Callable[[float], float]
    service_s: float = 4.0
    seed: int = 1
    now_s: float = 0.0
    changes: list[tuple[float, int, str]] = field(default_factory=list)
    served: int = 0

    def __post_init__(self) -> None:
        first = max(1, self.policy.min_replicas)
        self.scaler = Autoscaler(self.policy, first)
        self.ready_s = [0.0] * first  # of each replica
        self._random = random.Random(self.seed)
        self._waiting: deque[float] = deque()
        self._running: list[float] = []  # when each ends

    def run(self, seconds: float) -> ScalingWorld:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 1.0
            self._serve()
            before = self.scaler.wanted
            decision = self.scaler.decide(self.now_s, self.load())
            if decision.wanted != before:
                self._scale(decision)
        return self

    def load(self) -> Load:
        serving = self.num_serving
        return Load(
            num_serving=serving,
            num_sequences=len(self._running) + len(self._waiting),
            num_waiting=len(self._waiting),
            num_ended=self.served,
            queue_s=self.now_s - self._waiting[0] if self._waiting else 0.0,
        )

    @property
    def num_serving(self) -> int:
        return sum(ready <= self.now_s for ready in self.ready_s)

    @property
    def num_flaps(self) -> int:
        """Changes of direction: each means that one of the two before was a mistake."""
        sizes = [max(1, self.policy.min_replicas), *(wanted for _, wanted, _ in self.changes)]
        steps = [b > a for a, b in itertools.pairwise(sizes)]
        return sum(a != b for a, b in itertools.pairwise(steps))

    def _serve(self) -> None:
        self.served += sum(end <= self.now_s for end in self._running)
        self._running = [end for end in self._running if end > self.now_s]
        self._waiting.extend([self.now_s] * self._arrivals())
        room = self.num_serving * self.policy.sequences_per_replica - len(self._running)
        for _ in range(min(room, len(self._waiting))):
            self._waiting.popleft()
            self._running.append(self.now_s + self.service_s * self._random.uniform(0.5, 1.5))

    def _arrivals(self) -> int:
        """Of one second: as many exponential gaps as fit."""
        mean, passed_s, number = self.rate(self.now_s), 0.0, 0
        while mean and (passed_s := passed_s + self._random.expovariate(mean)) < 1.0:
            number += 1
        return number

    def _scale(self, decision: Decision) -> None:
        self.changes.append((self.now_s, decision.wanted, decision.reason))
        while len(self.ready_s) < decision.wanted:
            self.ready_s.append(self.now_s + START_S)
        del self.ready_s[decision.wanted :]
