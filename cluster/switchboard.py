"""Connects calls with ranks: submits their requests, feeds their streams, moves them when a rank is lost."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable

from cluster.assignment import Assignment
from cluster.executor import Executor, RankEvents
from cluster.request_part import Part, resumed, split
from cluster.sequence_stream import SequenceStream
from cluster.stream import RequestStream
from cluster.waiting_room import Guest, Patience, WaitingRoom
from scheduler.request import FinishReason, Request, TokenDelta
from sigmoe.errors import ServerFailure, SigmoeError, Unavailable

_log = logging.getLogger(__name__)

_MAX_LOSSES = 3  # a request that was on more ranks when they died may be what kills them


class Switchboard:
    """Knows every part on every rank. Belongs to one event loop; `run` is its pump.

    `on_ranks` is told whether any rank takes requests, whenever that may have changed.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        patience: Patience,
        clock: Callable[[], float],
        on_ranks: Callable[[bool], Awaitable[None]],
    ) -> None:
        self.num_resumed = 0
        self.num_tokens = 0
        self.num_ended = 0  # sequences
        self.num_background_ended = 0  # of these
        self._executor = executor
        self._patience = patience
        self._clock = clock
        self._on_ranks = on_ranks
        self._assignment = Assignment(executor.ranks())
        self._waiting = WaitingRoom(self._assignment, clock)
        self._parts: dict[str, Part] = {}
        self._part_ended = asyncio.Event()
        self._open: dict[RequestStream, set[str]] = {}  # the parts of each open stream
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def num_open(self) -> int:
        """Streams under way."""
        return len(self._open)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those that take requests, ascending."""
        return self._assignment.ranks

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the ranks have."""
        return tuple(self._parts.values())

    @property
    def guests(self) -> tuple[Guest, ...]:
        """Requests that wait for a rank that serves."""
        return self._waiting.guests

    @property
    def num_homeless(self) -> int:
        """Sequences that wait for a rank that serves."""
        return self._waiting.num_sequences

    @property
    def loads(self) -> dict[int, int]:
        """Rows under way on each rank that serves."""
        return self._assignment.loads

    async def open(self, request: Request, stream: RequestStream, deadline: float | None) -> None:
        """Give a request to a rank; `stream` gets what comes. Where no rank serves it waits for one, or is refused.

        Raises Unavailable, and DeadlineExceeded. The caller must `close` the stream in the end, however this ends.
        """
        self._open[stream] = set()
        for part_request in split(request, one_by_one=stream.has_stops):
            assigned = await self._waiting.place(part_request, deadline, self._patience.wait_s)
            await self._place(
                Part(
                    request=part_request,
                    stream=stream,
                    client_id=request.request_id,
                    deadline=deadline,
                    assigned=assigned,
                )
            )

    def close(self, stream: RequestStream) -> None:
        """Forget a stream; what ranks still do for it is cancelled at once."""
        for part_id in self._open.pop(stream, ()):
            part = self._parts.pop(part_id)
            self._part_ended.set()
            self._count_ended(part, sum(not sequence.is_finished for sequence in part.sequences))
            self._assignment.release(part.assigned)
            self._cancel(part)

    def fail_all(self, error: SigmoeError) -> None:
        """End every open stream with an error, and all to come."""
        self._waiting.close(error)
        for stream in self._open:
            stream.fail(error)

    async def drain(self, ranks: Collection[int], limit_s: float) -> int:
        """Give these ranks no more, let what they have end for `limit_s`, move the rest; returns how many were moved.

        Afterwards the ranks have nothing; they may go, or join again.
        """
        for rank in ranks:
            self._assignment.lose(rank)
        await self._tell()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._on(ranks):
                    self._part_ended.clear()
                    await self._part_ended.wait()
        left = self._on(ranks)
        self._take_away(left, "its replica is taken away")
        return len(left)

    async def run(self) -> None:
        """Feed the streams until the executor stops. Never waits for a client."""
        reason = "the executor has stopped"
        try:
            async for event in self._executor.events():
                self._deliver(event)
                if event.lost:
                    await self._lose([event.rank], event.lost)
                if event.joined:
                    await self._join(event.rank)
        except Exception as error:  # whatever broke, the calls under way must learn of it
            _log.exception("event=events_failed")
            reason = f"{type(error).__name__}: {error}"
        await self._lose({*self._assignment.ranks, *(part.assigned.rank for part in self._parts.values())}, reason)

    async def stop(self) -> None:
        """End what runs in the background."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)

    def _deliver(self, event: RankEvents) -> None:
        for delta in event.deltas:
            part = self._parts.get(delta.request_id)
            if part is None:  # cancelled, or moved away
                continue
            if not part.owns(delta.sequence_index):
                _log.error("event=strange_delta id=%s rank=%d delta=%s", part.client_id, event.rank, delta)
                part.stream.fail(ServerFailure(f"request {part.client_id}: a rank reported an unknown sequence"))
                self._cancel(part)
                continue
            part.has_begun = True
            self._count_ended(part, int(delta.finish_reason is not None))
            sequence = part.stream.push(delta)
            self.num_tokens += len(delta.token_ids)
            if sequence.is_finished or sequence.is_stopped or part.stream.is_over:
                self._settle(part)

    def _count_ended(self, part: Part, number: int) -> None:
        self.num_ended += number
        self.num_background_ended += number if part.is_background else 0

    def _settle(self, part: Part) -> None:
        """Let go of a part whose sequences have ended; cancel one that is wanted no more."""
        if all(sequence.is_finished for sequence in part.sequences):
            self._forget(part)
            self._assignment.release(part.assigned)
        elif part.stream.is_over or all(sequence.is_stopped for sequence in part.sequences):
            self._cancel(part)

    async def _place(self, part: Part) -> None:
        """Register, then submit: a loss reported meanwhile finds the part and moves it."""
        part_id, left_s = part.request.request_id, None
        if part.deadline is not None:
            left_s = max(0.0, part.deadline - self._clock())
        part.since = self._clock()
        self._parts[part_id] = part
        self._open[part.stream].add(part_id)
        try:
            await self._executor.submit(part.assigned.rank, dataclasses.replace(part.request, deadline_s=left_s))
        except ConnectionError as error:
            _log.info("event=submit_failed id=%s rank=%d error=%s", part_id, part.assigned.rank, error)

    def _forget(self, part: Part) -> None:
        del self._parts[part.request.request_id]
        self._part_ended.set()
        self._open[part.stream].discard(part.request.request_id)

    def _cancel(self, part: Part) -> None:
        if not part.is_cancelled:
            part.is_cancelled = True
            self._spawn(self._cancel_on_rank(part.assigned.rank, part.request.request_id))

    async def _cancel_on_rank(self, rank: int, part_id: str) -> None:
        try:
            await self._executor.cancel(rank, part_id)
        except ConnectionError as error:
            _log.info("event=cancel_failed id=%s rank=%d error=%s", part_id, rank, error)

    async def _lose(self, ranks: Iterable[int], reason: str) -> None:
        for rank in ranks:
            moved = self._on([rank])
            is_news = rank in self._assignment.ranks or moved  # else it was drained
            _log.log(
                logging.WARNING if is_news else logging.INFO,
                "event=rank_lost rank=%d requests=%d reason=%s",
                rank,
                len(moved),
                reason,
            )
            self._assignment.lose(rank)
            for part in moved:
                part.num_losses += 1
            self._take_away(moved, reason)
        await self._tell()

    async def _join(self, rank: int) -> None:
        _log.info("event=rank_joined rank=%d", rank)
        self._assignment.join(rank)
        await self._tell()

    async def _tell(self) -> None:
        await self._on_ranks(self._waiting.look())

    def _on(self, ranks: Collection[int]) -> list[Part]:
        return [part for part in self._parts.values() if part.assigned.rank in ranks]

    def _take_away(self, parts: Iterable[Part], reason: str) -> None:
        """Let other ranks go on with these parts."""
        for part in parts:
            self._forget(part)
            self._cancel(part)  # where its rank is lost, it may have reached the next epoch already
            self._spawn(self._move(part, reason))

    async def _move(self, part: Part, reason: str) -> None:
        """Resubmit the sequences of a part whose rank is gone, each with the tokens it has."""
        if part.num_losses > _MAX_LOSSES:
            part.stream.fail(Unavailable(f"request {part.client_id}: lost with {part.num_losses} ranks ({reason})"))
            return
        for sequence in part.sequences:
            if sequence.is_finished or part.stream.is_over:
                continue
            if sequence.is_stopped:  # only the rank's figures are missing
                end = TokenDelta(
                    request_id=part.client_id, sequence_index=sequence.index, finish_reason=FinishReason.STOP
                )
                part.stream.push(end)
                continue
            await self._resume(part, sequence)

    async def _resume(self, part: Part, sequence: SequenceStream) -> None:
        request = resumed(part, sequence)
        try:
            assigned = await self._waiting.place(request, part.deadline, self._patience.resume_s)
        except SigmoeError as error:
            part.stream.fail(error)
            return
        if part.stream not in self._open or part.stream.is_over:
            self._assignment.release(assigned)
            return
        self.num_resumed += 1
        _log.info("event=resumed id=%s rank=%d tokens=%d", request.request_id, assigned.rank, len(request.resumed))
        await self._place(dataclasses.replace(part, request=request, assigned=assigned, num_moves=part.num_moves + 1))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        chore = asyncio.get_running_loop().create_task(work)
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
