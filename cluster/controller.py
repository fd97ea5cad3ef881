"""Owns the group's membership: starts it, sees it lost, starts the next epoch. Knows neither Ray nor gRPC."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from cluster.executor import GroupStartError, LoadProgress

_log = logging.getLogger(__name__)

_PEACE_S = 60.0  # an epoch that lasted so long has not failed at once


class Group(Protocol):
    """The ranks of one epoch."""

    def start(self) -> AsyncIterator[LoadProgress]:
        """Start every rank; the group serves when the iterator ends. Raises GroupStartError and leaves nothing."""
        ...

    async def ended(self) -> str:
        """Wait until some rank is lost; returns the reason."""
        ...

    async def stop(self) -> None:
        """Stop every rank, by force where it takes long. Safe to call twice."""
        ...


G = TypeVar("G", bound=Group)


class Controller(Generic[G]):
    """Keeps a group serving. Belongs to one event loop."""

    def __init__(
        self,
        make_group: Callable[[int], G],
        on_epoch: Callable[[G], Awaitable[None]],
        *,
        max_restarts: int,
        clock: Callable[[], float] = time.monotonic,
        on_loss: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`make_group` gets the epoch. `on_epoch` is told of each group that serves, before the next can be lost.

        `on_loss` hears why a group was lost, or did not start in place of a lost one.

        A group that is lost `max_restarts` + 1 times without a minute of peace between is given up.
        """
        self.epoch = 0
        self._make_group = make_group
        self._on_epoch = on_epoch
        self._max_restarts = max_restarts
        self._clock = clock
        self._on_loss = on_loss
        self._group: G | None = None

    async def start(self) -> AsyncIterator[LoadProgress]:
        """Start the first group, yielding progress. Raises GroupStartError."""
        group = self._group = self._make_group(self.epoch)
        async for progress in group.start():
            yield progress
        await self._on_epoch(group)

    async def run(self) -> str:
        """Replace each group that is lost; returns why the last one was, when it is given up."""
        num_restarts = 0
        while True:
            assert self._group is not None, "not started"
            started_s = self._clock()
            reason = await self._group.ended()
            num_restarts = 0 if self._clock() - started_s > _PEACE_S else num_restarts
            while True:
                _log.warning("event=group_lost epoch=%d restarts=%d reason=%s", self.epoch, num_restarts, reason)
                self._on_loss(reason)
                await self._group.stop()
                if num_restarts >= self._max_restarts:
                    return reason
                num_restarts += 1
                failed = await self._restart()
                if not failed:
                    break
                reason = failed

    async def stop(self) -> None:
        """Stop the group."""
        if self._group is not None:
            await self._group.stop()

    async def _restart(self) -> str:
        """The next epoch; returns what stopped it, or nothing."""
        self.epoch += 1
        self._group = self._make_group(self.epoch)
        try:
            async for step in self._group.start():
                _log.debug("event=restarting epoch=%d rank=%d stage=%s", self.epoch, step.rank, step.stage)
        except GroupStartError as error:
            return str(error)
        await self._on_epoch(self._group)
        _log.info("event=epoch epoch=%d", self.epoch)
        return ""
