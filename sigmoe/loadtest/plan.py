"""Everything that a run is told, after it has been checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sigmoe.loadtest.expressions import Expression
from sigmoe.loadtest.load import Load, Schedule
from sigmoe.loadtest.search import Range
from sigmoe.loadtest.workload import Workload
from sigmoe.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A search instead of given loads: `load_at` makes the load of a rate."""

    objectives: Sequence[Expression]
    within: Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ask, how much of it, and what to judge it by."""

    label: str
    seed: int
    workload: Workload
    loads: Sequence[Load]
    schedule: Schedule
    sampling: Sampling
    finding: Finding | None = None
    slo: Sequence[Expression] = ()
    fail_if: Sequence[Expression] = ()
    sample_interval_s: float = 1.0
    arguments: dict[str, Any] = field(default_factory=dict)  # as given, for the result
