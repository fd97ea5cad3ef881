"""An executor without processes, threads or weights: real schedulers over simulated runners, on the test's loop."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

from cluster.executor import GroupInfo, GroupStatus, LoadProgress, RankEvents, RankStatus
from cluster.frames import decode_deltas, decode_request, encode_deltas, encode_request
from engine.engine import Engine
from engine.simulated_runner import SimulatedRunner
from scheduler.limits import SchedulerConfig
from scheduler.request import FinishReason, Request, RequestRefused, TokenDelta
from scheduler.scheduler import Scheduler

BLOCK_SIZE = 4


class SimulatedExecutor:
    """`hold` and `go` stop and start the ranks' steps; `kill` and `revive` are what a chaos monkey does."""

    def __init__(
        self,
        *,
        num_ranks: int = 1,
        vocab_size: int = 512,
        max_context: int = 128,
        num_blocks: int = 512,
        eos: tuple[int, ...] = (),
        step_s: float = 0.0,
    ) -> None:
        """`step_s`: what a step takes, so that a test sees a request under way."""
        self._step_s = step_s
        self.cancelled: list[str] = []
        self.submitted: list[tuple[int, Request]] = []
        self._config = SchedulerConfig(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_rows_per_step=256,
            max_sequences=64,
            max_context=max_context,
            eos_token_ids=eos,
            max_waiting=20_000,
            vocab_size=vocab_size,
            max_drafts=3,
            adaptive_drafts=False,
        )
        self._info = GroupInfo(
            num_ranks=num_ranks,
            max_context=max_context,
            vocab_size=vocab_size,
            kv_tokens_per_rank=self._config.num_blocks * BLOCK_SIZE,
        )
        self.epoch = 0
        self.engines: dict[int, Engine] = {}
        self._reports: asyncio.Queue[RankEvents | Exception | None] = asyncio.Queue()
        self._may_step = asyncio.Event()
        self._steps_left: int | None = None  # until they hold; None: no end
        self._has_work: dict[int, asyncio.Event] = {}
        self._loops: dict[int, asyncio.Task[None]] = {}

    async def start(self) -> AsyncIterator[LoadProgress]:
        self._may_step.set()
        for rank in range(self._info.num_ranks):
            self._begin(rank)
            yield LoadProgress(rank=rank, stage="ready")

    def info(self) -> GroupInfo:
        return self._info

    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted(self.engines))

    async def submit(self, rank: int, request: Request) -> None:
        request = decode_request(encode_request(request))
        self.submitted.append((rank, request))
        if rank not in self.engines:
            raise ConnectionError(f"rank {rank} is gone")
        if request.deadline_s is not None:
            request = dataclasses.replace(request, deadline_s=time.monotonic() + request.deadline_s)
        try:
            self.engines[rank].add(request)
        except RequestRefused as refusal:
            self._report(rank, [_refused(request, index, refusal) for index in range(request.num_sequences)])
        self._has_work[rank].set()

    async def cancel(self, rank: int, request_id: str) -> None:
        self.cancelled.append(request_id)
        if rank in self.engines:
            self.engines[rank].abort(request_id)
            self._has_work[rank].set()

    async def events(self) -> AsyncIterator[RankEvents]:
        while (report := await self._reports.get()) is not None:
            if isinstance(report, Exception):
                raise report
            yield report

    async def status(self) -> GroupStatus:
        return GroupStatus(epoch=self.epoch, ranks=tuple(map(self._status, range(self._info.num_ranks))))

    async def stop(self) -> None:
        for rank in list(self._loops):
            await self._end(rank)
        self._reports.put_nowait(None)

    def hold(self, *, after_steps: int = 0) -> None:
        """Let the ranks run so many steps together, and no more until `go`."""
        self._steps_left = after_steps
        if after_steps:
            self._may_step.set()
        else:
            self._may_step.clear()

    def go(self) -> None:
        self._steps_left = None
        self._may_step.set()

    @property
    def is_holding(self) -> bool:
        return not self._may_step.is_set()

    async def kill(self, *ranks: int) -> None:
        for rank in ranks:
            await self._end(rank)
        for rank in ranks:
            self._reports.put_nowait(RankEvents(rank=rank, lost="killed by the test"))

    def revive(self, *ranks: int) -> None:
        self.epoch += 1
        for rank in ranks:
            self._begin(rank)
            self._reports.put_nowait(RankEvents(rank=rank, joined=True))

    def break_events(self, error: Exception) -> None:
        self._reports.put_nowait(error)

    def inject(self, rank: int, *deltas: TokenDelta) -> None:
        """Report what no rank made."""
        self._report(rank, list(deltas))

    async def idle(self) -> None:
        """Wait until no rank has anything to do."""
        async with asyncio.timeout(30):
            while any(engine.has_work for engine in self.engines.values()):
                await asyncio.sleep(0)

    def check_clean(self) -> None:
        """Every block is free (or cached), every queue empty."""
        for engine in self.engines.values():
            engine.check_integrity()
            stats = engine.stats()
            assert (stats.num_waiting, stats.num_running) == (0, 0)
            assert stats.num_free_blocks == stats.num_blocks

    def _begin(self, rank: int) -> None:
        runner = SimulatedRunner(block_size=BLOCK_SIZE, vocab_size=self._info.vocab_size)
        self.engines[rank] = Engine(Scheduler(self._config, time.monotonic), runner)
        self._has_work[rank] = asyncio.Event()
        self._loops[rank] = asyncio.create_task(self._run(rank, self.engines[rank]))

    async def _end(self, rank: int) -> None:
        self.engines.pop(rank, None)
        loop = self._loops.pop(rank, None)
        if loop is not None:
            loop.cancel()
            await asyncio.wait([loop])

    async def _run(self, rank: int, engine: Engine) -> None:
        while True:
            await self._has_work[rank].wait()
            await self._may_step.wait()
            if engine.has_work:
                self._report(rank, engine.step())
                self._count_step()
            else:
                self._has_work[rank].clear()
            await asyncio.sleep(self._step_s)

    def _count_step(self) -> None:
        if self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left <= 0:
                self._may_step.clear()

    def _report(self, rank: int, deltas: list[TokenDelta]) -> None:
        self._reports.put_nowait(RankEvents(rank=rank, deltas=decode_deltas(encode_deltas(deltas))))

    def _status(self, rank: int) -> RankStatus:
        engine = self.engines.get(rank)
        return RankStatus(
            rank=rank,
            device="simulated",
            host="localhost",
            pid=1,
            is_alive=engine is not None,
            stats=None if engine is None else engine.stats(),
        )


def _refused(request: Request, index: int, refusal: RequestRefused) -> TokenDelta:
    return TokenDelta(
        request_id=request.request_id,
        sequence_index=request.first_sequence_index + index,
        finish_reason=FinishReason.ERROR,
        error=str(refusal),
    )
