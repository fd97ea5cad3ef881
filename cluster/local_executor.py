"""The executor without Ray: one rank in this process, or several in processes of their own on this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

from cluster.executor import GroupInfo, GroupStartError, GroupStatus, LoadProgress, RankEvents
from cluster.rank_link import RankLink, RankMessage, RankReady, StoreOpened
from cluster.rank_spawn import ProcessRank
from engine.config import EngineConfig
from scheduler.request import Request

_STATUS_TIMEOUT_S = 5.0


class LocalExecutor:
    """Runs the ranks of one group on this machine; see `cluster.executor.Executor`.

    When a rank is lost the others cannot go on without its experts: they are stopped too and reported lost.
    """

    def __init__(self, config: EngineConfig, num_ranks: int, stop_grace_s: float = 10.0) -> None:
        """`config` is that of any rank: rank, group size and store are filled in here.

        A rank ends after its current step; one that waits for a dead peer is ended by force after `stop_grace_s`.
        """
        self._config = dataclasses.replace(config, group_size=num_ranks)
        self._stop_grace_s = stop_grace_s
        self._links: list[RankLink] = []
        self._messages: asyncio.Queue[RankMessage | None] = asyncio.Queue()  # None: stopped
        self._info: GroupInfo | None = None
        self._lost: dict[int, str] = {}
        self._is_stopped = False

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Executor`. Raises GroupStartError, with every rank stopped."""
        assert not self._links, "started twice"
        try:
            await self._launch()
            async for progress in self._progress():
                yield progress
        finally:
            if self._info is None:
                await self.stop()

    def info(self) -> GroupInfo:
        """See `Executor`."""
        assert self._info is not None, "the group has not started"
        return self._info

    def ranks(self) -> tuple[int, ...]:
        """See `Executor`."""
        return tuple(range(self.info().num_ranks))

    async def submit(self, rank: int, request: Request) -> None:
        """See `Executor`."""
        self._links[rank].submit(request)

    async def cancel(self, rank: int, request_id: str) -> None:
        """See `Executor`."""
        self._links[rank].cancel(request_id)

    async def events(self) -> AsyncIterator[RankEvents]:
        """See `Executor`."""
        while (message := await self._messages.get()) is not None:
            if isinstance(message, RankEvents):
                yield self._noticed(message)

    async def status(self) -> GroupStatus:
        """See `Executor`."""
        asked = (asyncio.to_thread(link.status, _STATUS_TIMEOUT_S) for link in self._links)
        ranks = await asyncio.gather(*asked)
        return GroupStatus(epoch=self._config.epoch, ranks=tuple(ranks))

    async def stop(self) -> None:
        """See `Executor`."""
        if self._is_stopped:
            return
        self._is_stopped = True
        for link in self._links:
            link.stop()
        give_up_at = time.monotonic() + self._stop_grace_s
        for link in self._links:
            await asyncio.to_thread(link.join, max(give_up_at - time.monotonic(), 0.0))
        self._messages.put_nowait(None)

    async def _launch(self) -> None:
        """Create the ranks and let rank 0 build; the others build once its store is open."""
        loop = asyncio.get_running_loop()

        def listener(message: RankMessage) -> None:
            loop.call_soon_threadsafe(self._messages.put_nowait, message)

        if self._config.group_size == 1:
            # Only here: a process that merely watches over ranks shall not load torch.
            from cluster.rank_thread import ThreadRank

            self._links = [ThreadRank(listener)]
        else:
            self._links = [ProcessRank(rank, listener) for rank in range(self._config.group_size)]
        self._links[0].build(dataclasses.replace(self._config, rank=0))

    async def _progress(self) -> AsyncIterator[LoadProgress]:
        """Follow the ranks until all serve."""
        waiting = set(range(len(self._links)))
        kv_tokens: list[int] = []
        for rank in waiting:
            yield LoadProgress(rank=rank, stage="starting")
        while waiting:
            message = await self._messages.get()
            if isinstance(message, LoadProgress):
                yield message
            elif isinstance(message, StoreOpened):
                for rank, link in enumerate(self._links[1:], start=1):
                    link.build(dataclasses.replace(self._config, rank=rank, store=message.address))
            elif isinstance(message, RankReady):
                waiting.remove(message.rank)
                kv_tokens.append(message.info.kv_tokens_per_rank)
                self._info = (
                    dataclasses.replace(message.info, kv_tokens_per_rank=min(kv_tokens)) if not waiting else None
                )
                yield LoadProgress(rank=message.rank, stage="ready")
            else:
                assert message is not None, "stopped while starting"
                raise GroupStartError(f"rank {message.rank} did not start: {message.lost}")

    def _noticed(self, events: RankEvents) -> RankEvents:
        """Stop the others when a rank is lost, and name the first loss as the reason of theirs."""
        if not events.lost or self._is_stopped:
            return events
        if not self._lost:
            for rank, link in enumerate(self._links):
                if rank != events.rank:
                    link.stop()
            self._lost[events.rank] = events.lost
            return events
        (first, reason), *_ = self._lost.items()
        self._lost[events.rank] = events.lost
        return dataclasses.replace(events, lost=f"lost with rank {first}: {reason}")
