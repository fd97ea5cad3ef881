"""Owns the fleet: starts replicas, watches over each, drains and removes them. Knows neither Ray nor gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cluster.autoscale import Autoscaler, Decision, Load
from cluster.board import FleetPicture, ReplicaPicture, ReplicaState
from cluster.controller import Controller, Group
from cluster.door import Door, FleetRules
from cluster.executor import GroupStartError, LoadProgress
from cluster.journal import EventKind, Journal

_log = logging.getLogger(__name__)

_RETRY_S = 10.0  # before a replica that did not start is tried again

G = TypeVar("G", bound=Group)


@dataclass(slots=True, kw_only=True, eq=False)
class _Replica(Generic[G]):
    number: int
    controller: Controller[G]
    state: ReplicaState = ReplicaState.STARTING
    life: asyncio.Task[None] | None = None  # whatever is done for it now


class Replicas(Generic[G]):
    """As many replicas as are wanted. Belongs to one event loop."""

    def __init__(
        self,
        make_group: Callable[[int], G],
        door: Door[G],
        rules: FleetRules,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_group` gets an epoch, one that no other group has."""
        self._make_group = make_group
        self._door = door
        self._rules = rules
        self._journal = journal
        self._clock = clock
        self._epochs = itertools.count()
        self._replicas: dict[int, _Replica[G]] = {}
        self._scaler = Autoscaler(rules.policy, max(1, rules.policy.min_replicas))
        self._reason = ""
        self._load: Load | None = None
        self._retry_s = 0.0  # not before, on the clock
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()

    @property
    def picture(self) -> FleetPicture:
        """The fleet now."""
        policy = self._rules.policy
        return FleetPicture(
            replicas=tuple(
                ReplicaPicture(number=number, state=replica.state) for number, replica in sorted(self._replicas.items())
            ),
            wanted=self._scaler.wanted,
            least=policy.min_replicas,
            most=policy.max_replicas,
            reason=self._reason,
            load=self._load,
        )

    async def start(self) -> AsyncIterator[LoadProgress]:
        """Start the least number of replicas, one at any rate, yielding progress. Raises GroupStartError.

        One starts even where none is needed yet: what cannot be loaded is known at once.
        """
        reports: asyncio.Queue[LoadProgress | _Replica[G] | Exception] = asyncio.Queue()
        first = [self._create() for _ in range(self._scaler.wanted)]
        starts = [asyncio.create_task(self._report_start(replica, reports)) for replica in first]
        try:
            waiting = set(first)
            while waiting:
                report = await reports.get()
                if isinstance(report, Exception):
                    raise report
                if isinstance(report, LoadProgress):
                    yield report
                else:
                    waiting.remove(report)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.wait(starts)
        for replica in first:
            replica.life = asyncio.create_task(self._watch(replica))

    async def run(self) -> str:
        """Keep as many as are wanted; returns why the last one was given up."""
        tasks = [asyncio.create_task(self._post())]
        if self._rules.policy.max_replicas > 1 or self._rules.policy.is_elastic:
            tasks.append(asyncio.create_task(self._tick_for_ever()))
        try:
            return await self._over
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def stop(self) -> None:
        """Stop every replica. Safe to call twice."""
        for replica in self._replicas.values():
            if replica.life is not None:
                replica.life.cancel()
        lives = [replica.life for replica in self._replicas.values() if replica.life is not None]
        await asyncio.gather(*lives, return_exceptions=True)
        await asyncio.gather(*(replica.controller.stop() for replica in self._replicas.values()))

    def _create(self) -> _Replica[G]:
        number = next(number for number in itertools.count() if number not in self._replicas)

        async def serve(group: G) -> None:
            await self._door.adopt(number, group)
            if replica.state is ReplicaState.RECOVERING:
                self._enter(replica, ReplicaState.SERVING, EventKind.EPOCH)

        def lose(reason: str) -> None:
            self._enter(replica, ReplicaState.RECOVERING, EventKind.LOST, reason)

        replica = _Replica(
            number=number,
            controller=Controller(
                lambda _: self._make_group(next(self._epochs)),
                serve,
                max_restarts=self._rules.max_restarts,
                on_loss=lose,
                clock=self._clock,
            ),
        )
        self._replicas[number] = replica
        self._enter(replica, ReplicaState.STARTING, EventKind.STARTING)
        return replica

    async def _start(self, replica: _Replica[G]) -> AsyncIterator[LoadProgress]:
        start_s = self._clock()
        async for progress in replica.controller.start():
            yield progress
        self._enter(replica, ReplicaState.SERVING, EventKind.SERVING, seconds=self._clock() - start_s)

    async def _report_start(
        self, replica: _Replica[G], reports: asyncio.Queue[LoadProgress | _Replica[G] | Exception]
    ) -> None:
        try:
            async for progress in self._start(replica):
                reports.put_nowait(dataclasses.replace(progress, replica=replica.number))
        except Exception as error:  # whatever stopped it is raised where the fleet is started
            reports.put_nowait(error)
        else:
            reports.put_nowait(replica)

    async def _live(self, replica: _Replica[G]) -> None:
        """A replica that was asked for while others serve."""
        try:
            async for _ in self._start(replica):
                pass
        except Exception as error:  # whatever stopped it, the others serve on
            is_known = isinstance(error, GroupStartError)
            _log.warning("event=replica_not_started replica=%d reason=%s", replica.number, error, exc_info=not is_known)
            self._retry_s = self._clock() + _RETRY_S
            await self._end(replica, EventKind.START_FAILED, str(error))
            return
        await self._watch(replica)

    async def _watch(self, replica: _Replica[G]) -> None:
        try:
            reason = await replica.controller.run()
        except Exception as error:  # as above
            _log.exception("event=replica_failed replica=%d", replica.number)
            reason = f"{type(error).__name__}: {error}"
        self._retry_s = self._clock() + _RETRY_S
        await self._end(replica, EventKind.GIVEN_UP, reason)
        if not self._replicas and not self._over.done():
            self._over.set_result(reason)

    async def _drain(self, replica: _Replica[G], reason: str) -> None:
        start_s = self._clock()
        self._enter(replica, ReplicaState.DRAINING, EventKind.DRAINING, reason)
        moved = 0
        with contextlib.suppress(ConnectionError):  # a gateway that is gone has taken its requests along
            moved = await self._door.drain(replica.number, self._rules.drain_s)
        self._note(EventKind.DRAINED, replica=replica, moved=moved, seconds=self._clock() - start_s)
        await self._end(replica, EventKind.REMOVED)

    async def _end(self, replica: _Replica[G], kind: EventKind, reason: str = "") -> None:
        with contextlib.suppress(ConnectionError):
            await self._door.release(replica.number)
        await replica.controller.stop()
        del self._replicas[replica.number]
        self._note(kind, reason, replica=replica)

    async def _tick_for_ever(self) -> None:
        while True:
            try:
                await self._tick()
            except ConnectionError as error:
                _log.info("event=no_load reason=%s", error)
            except Exception:  # one look that fails must not be the end of the fleet
                _log.exception("event=tick_failed")
            await asyncio.sleep(self._rules.interval_s)

    async def _tick(self) -> None:
        if self._rules.policy.is_elastic:
            await self._decide()
        kept = [replica for replica in self._replicas.values() if replica.state is not ReplicaState.DRAINING]
        missing = self._scaler.wanted - len(kept)
        for _ in range(missing if self._clock() >= self._retry_s else 0):
            replica = self._create()
            replica.life = asyncio.create_task(self._live(replica))
        # The last to come goes first: the oldest have the most in their prefix caches.
        for replica in sorted(kept, key=_worth)[: max(0, -missing)]:
            await self._remove(replica)

    async def _decide(self) -> None:
        before, self._load = self._scaler.wanted, await self._door.load()
        decision = self._scaler.decide(self._clock(), self._load)
        self._reason = decision.reason
        if decision.wanted != before:
            self._journal.note(EventKind.SCALE, decision.reason, numbers=_figures(before, decision, self._load))
        self._news.set()

    async def _remove(self, replica: _Replica[G]) -> None:
        assert replica.life is not None, f"replica {replica.number} has no life"
        was_starting = replica.state is ReplicaState.STARTING
        replica.life.cancel()
        await asyncio.gather(replica.life, return_exceptions=True)
        if self._replicas.get(replica.number) is not replica:  # it ended by itself
            return
        if was_starting:
            replica.life = asyncio.create_task(self._end(replica, EventKind.CALLED_OFF, self._reason))
            replica.state = ReplicaState.DRAINING
        else:
            replica.life = asyncio.create_task(self._drain(replica, self._reason))

    def _enter(
        self, replica: _Replica[G], state: ReplicaState, kind: EventKind, reason: str = "", **numbers: float
    ) -> None:
        replica.state = state
        self._note(kind, reason, replica=replica, **numbers)

    def _note(self, kind: EventKind, reason: str = "", *, replica: _Replica[G], **numbers: float) -> None:
        self._journal.note(kind, reason, replica=replica.number, numbers=numbers)
        self._news.set()

    async def _post(self) -> None:
        """Keep the gateway informed."""
        while True:
            self._news.clear()
            with contextlib.suppress(ConnectionError):
                await self._door.post(self.picture)
            await self._news.wait()


def _worth(replica: _Replica[G]) -> tuple[bool, int]:
    """What is started or lost anyway goes before what serves, the higher number before the lower."""
    return replica.state is ReplicaState.SERVING, -replica.number


def _figures(before: int, decision: Decision, load: Load) -> dict[str, float]:
    """What a scale event tells beside its reason."""
    figures = {
        "wanted": decision.wanted,
        "before": before,
        "serving": load.num_serving,
        "sequences": load.num_sequences,
        "waiting": load.num_waiting,
        "queue_s": load.queue_s,
        "kv_use": load.kv_use,
    }
    return figures if load.attainment is None else figures | {"attainment": load.attainment}
