"""Runs one level: sends as the load says, lets what is under way end, and stops when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from sigmoe.loadtest.load import Closed, Load, Open, Schedule
from sigmoe.loadtest.player import Player, backoff
from sigmoe.loadtest.record import Record
from sigmoe.loadtest.workload import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What became of a level. The window is `[start_s, end_s)` of the level's clock."""

    records: tuple[Record, ...]
    start_s: float
    end_s: float
    is_interrupted: bool


class Runner:
    """`now` is the level's clock, at 0 where it begins; `stop` ends the level early, at any time."""

    def __init__(self, player: Player, now: Callable[[], float], schedule: Schedule, stop: asyncio.Event) -> None:
        self._player = player
        self._now = now
        self._schedule = schedule
        self._stop = stop
        self._num_measured = 0
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, load: Load, items: Iterator[Item], seed: str) -> Run:
        """Send, drain, cancel what is left."""
        if isinstance(load, Closed):
            sending = self._closed(load.concurrency, items)
        elif isinstance(load, Open):
            times = load.arrivals.times(random.Random(f"{seed}/arrivals"), self._schedule.ramp_s)
            sending = self._open(times, items)
        else:
            sending = self._open(load.trace.times(), items)
        is_whole = await self._unless_stopped(sending)
        sent_until_s = self._now()
        if is_whole:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._schedule.drain_s):
                    is_whole = await self._unless_stopped(self._drain())
        await self._cancel()
        return self._result(sent_until_s, is_interrupted=not is_whole)

    def _result(self, sent_until_s: float, *, is_interrupted: bool) -> Run:
        records = tuple(self._player.tally.records)
        end_s = self._schedule.stop_s
        if is_interrupted:
            end_s = min(end_s, sent_until_s)
        elif sent_until_s < end_s - 0.001:  # a number of requests was asked for: it takes as long as the last one takes
            end_s = min(end_s, max((record.ended_s for record in records), default=sent_until_s))
        start_s = min(self._schedule.measured_from_s, end_s)
        return Run(records=records, start_s=start_s, end_s=end_s, is_interrupted=is_interrupted)

    async def _closed(self, concurrency: int, items: Iterator[Item]) -> None:
        workers = [self._worker(self._schedule.ramp_s * k / concurrency, items) for k in range(concurrency)]
        self._under_way = {asyncio.create_task(worker) for worker in workers}
        left_s = self._schedule.stop_s - self._now()
        await asyncio.wait(self._under_way, timeout=None if math.isinf(left_s) else max(0.0, left_s))

    async def _worker(self, start_s: float, items: Iterator[Item]) -> None:
        await asyncio.sleep(start_s)
        num_failed = 0
        while self._admits(self._now()):
            is_answered = await self._player.play(next(items), self._now(), self._is_sending)
            num_failed = 0 if is_answered else num_failed + 1
            if num_failed and self._is_sending():
                await backoff(num_failed)

    async def _open(self, times: Iterator[float], items: Iterator[Item]) -> None:
        for intended_s, item in zip(times, items, strict=False):
            await asyncio.sleep(max(0.0, min(intended_s, self._schedule.stop_s) - self._now()))
            if not self._admits(intended_s):
                return
            task = asyncio.create_task(self._one(item, intended_s))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _one(self, item: Item, intended_s: float) -> None:
        await self._player.play(item, intended_s, self._is_sending)

    def _is_sending(self) -> bool:
        return self._now() < self._schedule.stop_s

    def _admits(self, intended_s: float) -> bool:
        """Whether one more item is to be sent; counts it if it is measured."""
        if intended_s >= self._schedule.stop_s:
            return False
        if intended_s >= self._schedule.measured_from_s:
            if self._num_measured == self._schedule.num_requests:
                return False
            self._num_measured += 1
        return True

    async def _drain(self) -> None:
        while self._under_way:
            done, _ = await asyncio.wait(self._under_way)
            self._under_way -= done
            for task in done:
                task.result()  # a bug in the load test itself is not to be counted as the server's

    async def _cancel(self) -> None:
        left = list(self._under_way)
        for task in left:
            task.cancel()
        outcomes = await asyncio.gather(*left, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do it; False if it was told to stop meanwhile."""
        task, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return task.done()
        finally:
            for one in itertools.chain([task, stopping]):
                one.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)
