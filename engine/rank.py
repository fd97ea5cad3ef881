"""One rank: inbox, plan, agreement with the group, step, outbox."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.engine import Engine
from engine.lockstep import GroupStep, Lockstep, StepNeeds
from engine.outbox import Outbox
from engine.runner import nothing_foreseen
from scheduler.plan import GroupLoad, StepPlan, StepResult
from scheduler.request import DraftMethod, FinishReason, QueueFull, Request, RequestRefused, SchedulerStats, TokenDelta

_log = logging.getLogger(__name__)

STOPPED = "stopped"  # the reason of an orderly end


class RankLost(Exception):
    """The rank's loop has ended and will not go on. `reason` says why; `STOPPED` after an orderly stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFacts:
    """What does not change while a rank serves."""

    rank: int = 0
    device: str = "cpu"
    experts: tuple[int, ...] = ()  # logical ids held
    weight_bytes: int = 0
    kv_bytes: int = 0
    kv_tokens: int = 0
    kernels: str = ""
    max_context: int = 0
    vocab_size: int = 0
    draft_model: DraftMethod = DraftMethod.NONE  # the kind that is loaded, if any


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSnapshot:
    """What changes, as of the last step."""

    stats: SchedulerStats
    num_steps: int  # steps run, those without rows of this rank included
    num_tokens: int  # output tokens of this rank's requests
    expert_tokens: tuple[int, ...]  # rows that this rank's gate sent to each logical expert, all MoE layers


class Rank:
    """The loop of one rank. `run` belongs to one thread; every other method may be called by any."""

    def __init__(
        self,
        engine: Engine,
        lockstep: Lockstep,
        facts: RankFacts,
        *,
        expert_tokens: Callable[[], tuple[int, ...]] = tuple,
        num_collectives: Callable[[], int] = int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.facts = facts
        self.end_reason = ""  # set once, when the loop has ended
        self._engine = engine
        self._lockstep = lockstep
        self._expert_tokens = expert_tokens
        self._num_collectives = num_collectives
        self._clock = clock
        self._inbox: deque[Request | str] = deque()  # a request to add, or the id of one to cancel
        self._outbox = Outbox()
        self._changed = threading.Lock()  # guards the snapshot
        self._is_stopping = False
        self._num_steps = 0
        self._num_tokens = 0
        self._stats = engine.stats()

    def submit(self, request: Request) -> None:
        """Hand in a request; its `deadline_s` is seconds from now. Raises RankLost when nobody would serve it.

        One that the scheduler refuses comes back as deltas with FinishReason.ERROR, one for each sequence.
        """
        if self.end_reason:
            raise RankLost(self.end_reason)
        if request.deadline_s is not None:
            request = dataclasses.replace(request, deadline_s=self._clock() + request.deadline_s)
        self._inbox.append(request)
        self._lockstep.ring()

    def cancel(self, request_id: str) -> None:
        """End a request within one step; an unknown or ended one is ignored."""
        self._inbox.append(request_id)
        self._lockstep.ring()

    def poll(self, timeout_s: float) -> tuple[TokenDelta, ...]:
        """Take everything that came out since the last poll, waiting up to `timeout_s` for the first; see `Outbox`.

        Raises RankLost once the loop has ended and all deltas have been taken.
        """
        deltas = self._outbox.take(timeout_s)
        if not deltas and self._outbox.is_drained:
            raise RankLost(self.end_reason)
        return deltas

    def status(self) -> RankSnapshot:
        """The rank as of its last step."""
        with self._changed:
            return RankSnapshot(
                stats=self._stats,
                num_steps=self._num_steps,
                num_tokens=self._num_tokens,
                expert_tokens=self._expert_tokens(),
            )

    def stop(self) -> None:
        """Ask the whole group to stop after the current step; `run` then returns on every rank."""
        self._is_stopping = True
        self._lockstep.ring()

    def run(self) -> None:
        """Serve until some rank of the group stops or this one is lost; the reason reaches `poll`."""
        reason = "the loop was torn down"
        try:
            while self._turn():
                pass
            reason = STOPPED
        except Exception as error:
            # Whatever broke, wrong tokens must not follow, and nobody may wait for ever for this rank.
            reason = f"{type(error).__name__}: {error}"
            _log.exception("event=rank_lost rank=%d steps=%d stats=%s", self.facts.rank, self._num_steps, self._stats)
        finally:
            self.end_reason = reason
            self._outbox.close()

    def _turn(self) -> bool:
        """One step, or one sleep. False when the group stops."""
        refusals = self._empty_inbox()
        plan, is_steady = self._engine.plan(), True
        if not plan.is_launched:
            agreed = self._agree(plan, has_work=self._engine.has_work, is_steady=self._engine.is_steady(plan))
            if agreed.is_leaving:
                return False
            if not agreed.has_work:
                deltas = self._engine.commit(plan, StepResult(step_id=plan.step_id, sequences=()))
                self._publish(refusals + deltas)
                self._engine.check_when_idle()
                self._lockstep.sleep()
                return True
            plan, is_steady = _as_agreed(plan, agreed), agreed.is_steady
        deltas = self._engine.execute(plan, (lambda: self._foresee(plan)) if is_steady else nothing_foreseen)
        self._num_steps += 1
        self._publish(refusals + deltas)
        return True

    def _foresee(self, plan: StepPlan) -> StepPlan | None:
        """The step after a planned one, which runs now, as the group agrees on it; None unless all of it is certain.

        Then all ranks launch it behind the present one. What comes to any of them meanwhile waits for the step after
        it; where something has come already, they agree as ever when the present one is done.
        """
        coming = None if self._inbox or self._is_stopping else self._engine.foresee(plan)
        needs = coming or StepPlan(step_id=plan.step_id + 1, sequences=(), num_rows=0)
        agreed = self._agree(needs, has_work=needs.num_rows > 0, is_steady=coming is not None)
        return _as_agreed(needs, agreed) if agreed.is_steady and agreed.has_work else None

    def _agree(self, plan: StepPlan, *, has_work: bool, is_steady: bool) -> GroupStep:
        return self._lockstep.agree(
            StepNeeds(
                num_rows=plan.num_rows,
                num_sequences=len(plan.sequences),
                has_work=has_work,
                is_leaving=self._is_stopping,
                num_steps=self._num_steps,
                num_draft_passes=plan.num_draft_passes,
                num_collectives=self._num_collectives(),
                shape=plan.shape,
                is_steady=is_steady,
            )
        )

    def _empty_inbox(self) -> list[TokenDelta]:
        """Pass on what arrived, in order; returns the endings of refused requests."""
        refusals: list[TokenDelta] = []
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, str):
                self._engine.abort(item)
                continue
            if item.priority < 0:
                self._outbox.expect_background(item.request_id, item.num_sequences)
            try:
                self._engine.add(item)
            except (RequestRefused, QueueFull) as refusal:
                refusals.extend(_refused(item, refusal))
        return refusals

    def _publish(self, deltas: list[TokenDelta]) -> None:
        with self._changed:
            self._stats = self._engine.stats()
            self._num_tokens += sum(len(delta.token_ids) for delta in deltas)
        self._outbox.put(deltas)


def _as_agreed(plan: StepPlan, agreed: GroupStep) -> StepPlan:
    """The step as the whole group runs it."""
    num_ranks = len(agreed.num_rows)
    if num_ranks == 1 and (agreed.num_draft_passes, agreed.shape) == (plan.num_draft_passes, plan.shape):
        return plan
    load = GroupLoad(num_rows=sum(agreed.num_rows) / num_ranks, num_sequences=sum(agreed.num_sequences) / num_ranks)
    return dataclasses.replace(
        plan,
        num_draft_passes=agreed.num_draft_passes,
        shape=agreed.shape,
        group=load if num_ranks > 1 else None,
    )


def _refused(request: Request, refusal: RequestRefused | QueueFull) -> list[TokenDelta]:
    """One ending for each sequence the client waits for."""
    return [
        TokenDelta(
            request_id=request.request_id,
            sequence_index=request.first_sequence_index + index,
            finish_reason=FinishReason.ERROR,
            error=str(refusal),
        )
        for index in range(request.num_sequences)
    ]
