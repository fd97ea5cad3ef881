"""One executor for the gateway over replicas that come and go, and over each one's groups that follow one another.

The ranks of all replicas are numbered through: rank r of replica n is n * G + r here, G being the size of a group.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from cluster.executor import Executor, GroupInfo, GroupStatus, LoadProgress, RankEvents
from scheduler.request import Request

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Replica:
    group: Executor
    is_serving: bool = True
    pump: asyncio.Task[None] | None = None


class Fleet:
    """Passes everything on to the replicas' present groups; see `cluster.executor.Executor`.

    Starts and stops no group: whoever does calls `adopt` for each, and `release` for a replica that goes. When a rank
    is lost its whole replica is, since the ranks cannot go on without one another's experts; they join again with the
    replica's next group.
    """

    def __init__(self, on_lost: Callable[[int, str], None] = lambda replica, reason: None) -> None:
        """`on_lost` hears of the first loss of each group: the replica and the reason."""
        self._on_lost = on_lost
        self._info: GroupInfo | None = None
        self._epoch = 0  # the newest that was seen
        self._replicas: dict[int, _Replica] = {}
        self._events: asyncio.Queue[RankEvents | None] = asyncio.Queue()  # None: stopped

    def introduce(self, info: GroupInfo) -> None:
        """The facts of any group, for a gateway that serves before the first one is adopted."""
        self._info = info

    def adopt(self, replica: int, group: Executor) -> None:
        """Serve through this group, which has started, as the replica from now on."""
        if replica in self._replicas:
            self._leave(replica, "a new epoch has begun")
        self._info = group.info()
        member = self._replicas[replica] = _Replica(group=group)
        for rank in self.ranks_of(replica):
            self._events.put_nowait(RankEvents(rank=rank, joined=True))
        member.pump = asyncio.get_running_loop().create_task(self._follow(replica, member))

    def release(self, replica: int) -> None:
        """Forget a replica; one that is unknown is ignored."""
        if replica in self._replicas:
            self._leave(replica, "the replica was taken away")
            del self._replicas[replica]

    def ranks_of(self, replica: int) -> range:
        """A replica's ranks, by their numbers here."""
        size = self.info().num_ranks
        return range(replica * size, (replica + 1) * size)

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Executor`; the groups have started already."""
        for rank in self.ranks():
            yield LoadProgress(rank=rank, stage="ready")

    def info(self) -> GroupInfo:
        """See `Executor`: the facts of any one group."""
        assert self._info is not None, "no group yet"
        return self._info

    def ranks(self) -> tuple[int, ...]:
        """See `Executor`."""
        serving = sorted(replica for replica, member in self._replicas.items() if member.is_serving)
        return tuple(rank for replica in serving for rank in self.ranks_of(replica))

    async def submit(self, rank: int, request: Request) -> None:
        """See `Executor`."""
        replica, rank = divmod(rank, self.info().num_ranks)
        if replica not in self._replicas:
            raise ConnectionError(f"replica {replica} is gone")
        await self._replicas[replica].group.submit(rank, request)

    async def cancel(self, rank: int, request_id: str) -> None:
        """See `Executor`."""
        replica, rank = divmod(rank, self.info().num_ranks)
        if replica in self._replicas:
            await self._replicas[replica].group.cancel(rank, request_id)

    async def events(self) -> AsyncIterator[RankEvents]:
        """See `Executor`."""
        while (event := await self._events.get()) is not None:
            yield event

    async def status(self) -> GroupStatus:
        """See `Executor`: every rank, by replica and its number there."""
        replicas = sorted(self._replicas)
        groups = await asyncio.gather(*(self._replicas[replica].group.status() for replica in replicas))
        ranks = [
            dataclasses.replace(rank, replica=replica)
            for replica, group in zip(replicas, groups, strict=True)
            for rank in group.ranks
        ]
        self._epoch = max([self._epoch, *(group.epoch for group in groups)])
        return GroupStatus(epoch=self._epoch, ranks=tuple(ranks))

    async def stop(self) -> None:
        """End `events`."""
        pumps = [member.pump for member in self._replicas.values() if member.pump is not None]
        for pump in pumps:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
        self._events.put_nowait(None)

    async def _follow(self, replica: int, member: _Replica) -> None:
        first = self.ranks_of(replica).start
        reason = "the group has stopped"
        try:
            async for event in member.group.events():
                if not event.lost:
                    self._events.put_nowait(dataclasses.replace(event, rank=first + event.rank))
                    continue
                if event.deltas:
                    self._events.put_nowait(RankEvents(rank=first + event.rank, deltas=event.deltas))
                reason = event.lost
                break
        except Exception as error:  # whatever broke, the group cannot be heard any more
            _log.exception("event=group_events_failed replica=%d", replica)
            reason = f"{type(error).__name__}: {error}"
        self._lose(replica, reason)
        self._on_lost(replica, reason)

    def _leave(self, replica: int, reason: str) -> None:
        pump = self._replicas[replica].pump
        if pump is not None:
            pump.cancel()
        self._lose(replica, reason)

    def _lose(self, replica: int, reason: str) -> None:
        member = self._replicas[replica]
        if member.is_serving:
            member.is_serving = False
            for rank in self.ranks_of(replica):
                self._events.put_nowait(RankEvents(rank=rank, lost=reason))
