"""The seam between planning a step and computing it."""

from __future__ import annotations

from typing import Protocol

from scheduler.plan import StepPlan, StepResult


class Runner(Protocol):
    """Computes one step. All ranks of a group call `run` for the same agreed steps."""

    def run(self, plan: StepPlan) -> StepResult:
        """Run the plan's rows; a plan without sequences still takes part in the group's collectives."""
        ...
