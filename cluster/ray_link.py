"""The way from a gateway to the ranks of one epoch: calls of their actors."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import GetTimeoutError, RayError

from cluster.executor import GroupInfo, GroupStatus, LoadProgress, RankEvents, RankStatus
from cluster.frames import decode_deltas, decode_status, encode_request
from scheduler.request import Request

_STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The ranks of one epoch, by handle; crosses to the gateway's process."""

    epoch: int
    actors: tuple[Any, ...]  # ray handles of RankActor
    info: GroupInfo


class RayLink:
    """Serves one gateway with one epoch's ranks; see `cluster.executor.Executor`. Stops no rank."""

    def __init__(self, members: Members, gateway: str) -> None:
        """`gateway` names the one that asks, unlike any other before: a rank obeys the last that attached."""
        self._members = members
        self._gateway = gateway
        self._submits = [actor.submit.options(concurrency_group="inbox") for actor in members.actors]
        self._cancels = [actor.cancel.options(concurrency_group="inbox") for actor in members.actors]
        self._polls = [actor.poll.options(concurrency_group="poll") for actor in members.actors]
        self._tasks: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[RankEvents | None] = asyncio.Queue()  # None: stopped
        self._seen: dict[int, RankStatus] = {}

    async def attach(self) -> None:
        """Become the gateway that the ranks obey. A rank that is gone is reported as an event."""
        calls = [
            actor.attach.options(concurrency_group="inbox").remote(self._gateway) for actor in self._members.actors
        ]
        await asyncio.gather(*(_result(call) for call in calls), return_exceptions=True)
        await self.status()  # so that a rank lost later is known by its host and process
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow(rank)) for rank in range(len(self._members.actors))]

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Executor`; the ranks have started."""
        for rank in range(self._members.info.num_ranks):
            yield LoadProgress(rank=rank, stage="ready")

    def info(self) -> GroupInfo:
        """See `Executor`."""
        return self._members.info

    def ranks(self) -> tuple[int, ...]:
        """See `Executor`."""
        return tuple(range(self.info().num_ranks))

    async def submit(self, rank: int, request: Request) -> None:
        """See `Executor`. The answer is not waited for: what a lost rank drops, `events` tells."""
        self._submits[rank].remote(self._gateway, encode_request(request))

    async def cancel(self, rank: int, request_id: str) -> None:
        """See `Executor`."""
        self._cancels[rank].remote(request_id)

    async def events(self) -> AsyncIterator[RankEvents]:
        """See `Executor`."""
        while (event := await self._events.get()) is not None:
            yield event

    async def status(self) -> GroupStatus:
        """See `Executor`."""
        ranks = await asyncio.gather(*(self._rank_status(rank) for rank in range(len(self._members.actors))))
        return GroupStatus(epoch=self._members.epoch, ranks=tuple(ranks))

    async def stop(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._events.put_nowait(None)

    async def _follow(self, rank: int) -> None:
        """Ask the rank again and again; one call at a time, which waits there for something to tell."""
        lost = ""
        while not lost:
            try:
                frame, lost = await self._polls[rank].remote(self._gateway)
            except RayError as error:
                lost = reason(rank, error)
                self._events.put_nowait(RankEvents(rank=rank, lost=lost))
                return
            deltas = decode_deltas(frame)
            if deltas or lost:
                self._events.put_nowait(RankEvents(rank=rank, deltas=deltas, lost=lost))

    async def _rank_status(self, rank: int) -> RankStatus:
        call = self._members.actors[rank].status.options(concurrency_group="control").remote()
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                status = decode_status(await call)
        except (RayError, GetTimeoutError, TimeoutError):
            known = self._seen.get(rank, RankStatus(rank=rank, device="", host="", pid=0, is_alive=False))
            return dataclasses.replace(known, is_alive=False)
        self._seen[rank] = status
        return status


def reason(rank: int, error: RayError) -> str:
    """One line that says why a rank's actor did not answer."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"rank {rank}: {lines[0] if lines else type(error).__name__}"


async def _result(call: Awaitable[Any]) -> Any:
    return await call
