"""Looks at the server and at the load test itself while a level runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from sigmoe.errors import SigmoeError
from sigmoe.loadtest.document import ClientLoad, RankSample, ServerSample
from sigmoe.loadtest.statistics import percentile
from sigmoe.results import Cluster, RankState

_LAG_INTERVAL_S = 0.02
Look = Callable[[], Awaitable[Cluster]]


class ServerSampler:
    """Asks for snapshots at an interval; one that fails is left out, as a gap in the plots."""

    def __init__(self, look: Look, now: Callable[[], float], interval_s: float) -> None:
        self._look = look
        self._now = now
        self._interval_s = interval_s
        self._before: dict[tuple[int, int], tuple[int, ...]] = {}  # by replica and rank
        self.samples: list[ServerSample] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            started_s = self._now()
            with contextlib.suppress(SigmoeError):
                self._add(await self._look(), self._now())
            await asyncio.sleep(max(0.0, self._interval_s - (self._now() - started_s)))

    def _add(self, cluster: Cluster, at_s: float) -> None:
        is_first = not self._before
        experts = [self._rows(rank) for rank in cluster.ranks]
        width = max(map(len, experts), default=0)
        total = [sum(rows[e] for rows in experts if e < len(rows)) for e in range(width)]
        self.samples.append(
            ServerSample(
                at_s=at_s,
                active_requests=cluster.gateway.active_requests,
                ranks=tuple(_rank(rank) for rank in cluster.ranks),
                expert_tokens=() if is_first else tuple(total),
            )
        )

    def _rows(self, rank: RankState) -> Sequence[int]:
        """Rows by expert since the last look; a rank's process that began anew counts from 0."""
        key = (rank.replica, rank.rank)
        before, now = self._before.get(key, ()), rank.expert_tokens
        self._before[key] = now
        if len(before) != len(now) or any(new < old for new, old in zip(now, before, strict=True)):
            return now
        return [new - old for new, old in zip(now, before, strict=True)]


def _rank(rank: RankState) -> RankSample:
    blocks = max(1, rank.kv_blocks)
    return RankSample(
        replica=rank.replica,
        rank=rank.rank,
        running=rank.running_sequences,
        waiting=rank.waiting_sequences,
        kv_used=(rank.kv_blocks - rank.kv_blocks_free) / blocks,
        kv_cached=rank.kv_blocks_cached / blocks,
    )


class ClientProbe:
    """How late the event loop is and what CPU time the process takes: a busy client measures itself."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()
        self._lags_s: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _LAG_INTERVAL_S
            await asyncio.sleep(_LAG_INTERVAL_S)
            self._lags_s.append(max(0.0, loop.time() - due_s))

    def result(self) -> ClientLoad:
        """So far."""
        wall_s, cpu_s = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        ascending = sorted(self._lags_s) or [0.0]
        return ClientLoad(
            cpu_share=cpu_s / max(wall_s, 1e-9),
            loop_lag_p50_s=percentile(ascending, 50.0),
            loop_lag_p99_s=percentile(ascending, 99.0),
        )
