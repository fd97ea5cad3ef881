"""The seam between planning a step and computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from scheduler.plan import StepPlan, StepResult, StepShape

Foresight = Callable[[], StepPlan | None]


def nothing_foreseen() -> None:
    """The foresight of who foresees nothing."""


class Runner(Protocol):
    """Computes one step. All ranks of a group call `run` for the same agreed steps."""

    def shape(self, plan: StepPlan) -> StepShape | None:
        """The room that a step needs where it may be padded, for the group to agree on; None: it runs as it is."""
        ...

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        """What of the next plan was launched as its group foresaw it; None: the group has launched nothing yet."""
        ...

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        """Run the plan's rows; a plan without sequences still takes part in the group's collectives.

        With a `shape` the step is padded to what holds it, on every rank to the same. `foresee` tells the next step if
        it is certain, with tokens that this one chooses: a device may go on with it at once. Ranks of a group agree in
        it; each calls it once while it runs a step with a shape, and launches what it returns.
        """
        ...
