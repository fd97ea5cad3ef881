"""The engine of one rank, called directly: requests in, token deltas out."""

from __future__ import annotations

import time
from dataclasses import replace

from engine.runner import Foresight, Runner
from scheduler.plan import StepPlan, StepResult
from scheduler.request import FinishReason, Request, SchedulerStats, TokenDelta
from scheduler.scheduler import Scheduler

_CHECK_EVERY = 100  # times as long as a check takes, from one to the next


class Engine:
    """Couples a scheduler to a runner. Not thread-safe; `engine.rank` gives it a thread and an inbox.

    In one process `step` is all one needs. A rank in a group agrees with the others between `plan` and `execute`.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._next_check_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.has_work

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestRefused if it can never run here, QueueFull if too many wait."""
        self._scheduler.add(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request; the next step tells. One that is unknown or has ended is ignored."""
        self._scheduler.cancel(request_id, reason)

    def step(self) -> list[TokenDelta]:
        """Plan and compute one step. Returns what it added to each sequence, and the ends of aborted ones."""
        deltas = self.execute(self.plan())
        self.check_when_idle()
        return deltas

    def plan(self) -> StepPlan:
        """Choose what the next step computes; `execute` or `run` and `commit` must follow before the next plan.

        A step that the group has launched already (`is_launched`) holds nothing that was not foreseen: that waits.
        """
        plan = self._scheduler.plan()
        if (launched := self._runner.under_way(plan)) is not None:
            return launched
        shape = self._runner.shape(plan)
        return plan if shape is None else replace(plan, shape=shape)

    def is_steady(self, plan: StepPlan) -> bool:
        """Whether the step after a planned one may be certain while that one runs."""
        return plan.shape is not None and self._scheduler.is_steady(plan)

    def foresee(self, plan: StepPlan) -> StepPlan | None:
        """The step after a planned one, before its tokens are known; None unless it is certain and has a shape."""
        coming = self._scheduler.foresee(plan)
        shape = None if coming is None else self._runner.shape(coming)
        return None if coming is None or shape is None else replace(coming, shape=shape)

    def execute(self, plan: StepPlan, foresee: Foresight | None = None) -> list[TokenDelta]:
        """Compute a planned step. A plan without sequences is valid: it takes part in the group's collectives."""
        return self.commit(plan, self.run(plan, foresee))

    def run(self, plan: StepPlan, foresee: Foresight | None = None) -> StepResult:
        """Compute the rows of a plan. Meanwhile the device may be given the next step, if it is certain.

        A group must agree on that one: its ranks bring their own `foresee`.
        """
        return self._runner.run(plan, foresee or (lambda: self.foresee(plan)))

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Take over the results of a plan."""
        return self._scheduler.commit(plan, result)

    def stats(self) -> SchedulerStats:
        """A snapshot of queues and blocks."""
        return self._scheduler.stats()

    def check_integrity(self) -> None:
        """Assert that no block is lost and no sequence misplaced; takes a while where there are many blocks."""
        self._scheduler.check()

    def check_when_idle(self) -> None:
        """The same where there is nothing else to do, unless it would take a hundredth of the time or more.

        An engine with a single client is idle behind each answer, and the next request waits for this.
        """
        begin_s = time.perf_counter()
        if self.has_work or begin_s < self._next_check_s:
            return
        self.check_integrity()
        end_s = time.perf_counter()
        self._next_check_s = end_s + _CHECK_EVERY * (end_s - begin_s)
