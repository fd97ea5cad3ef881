"""The seam between planning a step and computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from scheduler.plan import SequencePlan, StepPlan, StepResult, StepShape

Foresight = Callable[[], tuple[SequencePlan, ...]]


class Runner(Protocol):
    """Computes one step. All ranks of a group call `run` for the same agreed steps."""

    def shape(self, plan: StepPlan) -> StepShape | None:
        """The room that a step needs where it may be padded, for the group to agree on; None: it runs as it is."""
        ...

    def run(self, plan: StepPlan, foresee: Foresight = tuple) -> StepResult:
        """Run the plan's rows; a plan without sequences still takes part in the group's collectives.

        With a `shape` the step is padded to what holds it, on every rank to the same. `foresee` tells the rows of the
        next step as far as they are certain, with tokens that this one chooses: a device may go on with them at once.
        """
        ...
