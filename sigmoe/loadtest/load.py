"""How much is asked: loads, and the schedule of a level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sigmoe.loadtest.arrivals import Arrivals, Process
from sigmoe.loadtest.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """So many clients, each of which asks again when it has its answer."""

    concurrency: int

    @property
    def label(self) -> str:
        """How reports call it."""
        return f"concurrency {self.concurrency}"

    def facts(self) -> dict[str, Any]:
        """For the result."""
        return {"kind": "closed", "concurrency": self.concurrency}


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Arrivals that wait for nobody."""

    arrivals: Arrivals

    @property
    def label(self) -> str:
        """How reports call it."""
        return f"rate {self.arrivals.rate:g}/s"

    def facts(self) -> dict[str, Any]:
        """For the result."""
        facts = {"kind": "open", "rate": self.arrivals.rate, "process": self.arrivals.process.value}
        is_gamma = self.arrivals.process is Process.GAMMA
        return facts | ({"burstiness": self.arrivals.burstiness} if is_gamma else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Arrivals as they were recorded."""

    trace: Trace

    @property
    def label(self) -> str:
        """How reports call it."""
        return "trace" if self.trace.speed == 1 else f"trace at {self.trace.speed:g} times its speed"

    def facts(self) -> dict[str, Any]:
        """For the result."""
        return {"kind": "replay", "trace": self.trace.path, "speed": self.trace.speed}


Load = Closed | Open | Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A level's course; requests meant to be sent during ramp and warm-up are not measured.

    ```
    0        ramp       ramp + warm-up                         stop
    [─────────)[───────────)[────── measured window ─────────────)[── drain ──)
    ```
    It stops after `duration_s` of the window, or after `num_requests` meant within it, whichever comes first;
    what is under way then may end within `drain_s`.
    """

    ramp_s: float = 0.0
    warmup_s: float = 0.0
    duration_s: float = math.inf
    num_requests: int | None = None
    drain_s: float = 60.0

    @property
    def measured_from_s(self) -> float:
        """Where the window begins."""
        return self.ramp_s + self.warmup_s

    @property
    def stop_s(self) -> float:
        """Where it ends at the latest."""
        return self.measured_from_s + self.duration_s
