"""One executor for the gateway over the groups that follow one another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from cluster.executor import Executor, GroupInfo, GroupStatus, LoadProgress, RankEvents
from scheduler.request import Request

_log = logging.getLogger(__name__)


class EpochExecutor:
    """Passes everything on to the group of the current epoch; see `cluster.executor.Executor`.

    Starts and stops no group: whoever does calls `adopt` for each. When a rank of a group is lost the whole group is,
    since its ranks cannot go on without one another's experts; all of them join again with the next group.
    """

    def __init__(self, on_lost: Callable[[str], None] = lambda reason: None) -> None:
        """`on_lost` hears the reason of each group's first loss, once a group."""
        self._on_lost = on_lost
        self._group: Executor | None = None
        self._serving: set[int] = set()
        self._events: asyncio.Queue[RankEvents | None] = asyncio.Queue()  # None: stopped
        self._pump: asyncio.Task[None] | None = None

    def adopt(self, group: Executor) -> None:
        """Serve through this group, which has started, from now on."""
        if self._pump is not None:
            self._pump.cancel()
        is_first = self._group is None
        self._lose_all("a new epoch has begun")
        self._group = group
        self._serving = set(range(group.info().num_ranks))
        if not is_first:
            for rank in sorted(self._serving):
                self._events.put_nowait(RankEvents(rank=rank, joined=True))
        self._pump = asyncio.get_running_loop().create_task(self._follow(group))

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Executor`; the first group has started already."""
        assert self._group is not None, "no group yet"
        for rank in range(self._group.info().num_ranks):
            yield LoadProgress(rank=rank, stage="ready")

    def info(self) -> GroupInfo:
        """See `Executor`."""
        return self._current.info()

    async def submit(self, rank: int, request: Request) -> None:
        """See `Executor`."""
        await self._current.submit(rank, request)

    async def cancel(self, rank: int, request_id: str) -> None:
        """See `Executor`."""
        await self._current.cancel(rank, request_id)

    async def events(self) -> AsyncIterator[RankEvents]:
        """See `Executor`."""
        while (event := await self._events.get()) is not None:
            yield event

    async def status(self) -> GroupStatus:
        """See `Executor`."""
        return await self._current.status()

    async def stop(self) -> None:
        """End `events`."""
        if self._pump is not None:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
        self._events.put_nowait(None)

    @property
    def _current(self) -> Executor:
        assert self._group is not None, "no group yet"
        return self._group

    async def _follow(self, group: Executor) -> None:
        reason = "the group has stopped"
        try:
            async for event in group.events():
                if not event.lost:
                    self._events.put_nowait(event)
                    continue
                if event.deltas:
                    self._events.put_nowait(RankEvents(rank=event.rank, deltas=event.deltas))
                reason = event.lost
                break
        except Exception as error:  # whatever broke, the group cannot be heard any more
            _log.exception("event=group_events_failed")
            reason = f"{type(error).__name__}: {error}"
        self._lose_all(reason)
        self._on_lost(reason)

    def _lose_all(self, reason: str) -> None:
        for rank in sorted(self._serving):
            self._events.put_nowait(RankEvents(rank=rank, lost=reason))
        self._serving = set()
