"""A batch under way: lines in, answers into the journal, no more of them in memory than are under way."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field

from cluster.batch_answers import answer_line, error_line, fault_of
from cluster.batch_format import BatchRequest, LineFault, parse_line
from cluster.batch_input import MAX_LINE, Line
from cluster.batch_journal import Journal
from cluster.batch_server import Answerer
from cluster.batch_throttle import Throttle
from sigmoe.errors import Overloaded, ServerFailure, SigmoeError, Unavailable
from sigmoe.results import Completion

_LOOK_AHEAD, _LOOK_AHEAD_BYTES = 64, 4 * 2**20  # lines, or what they hold, read at a time
_MAX_TRIES = 5  # of a line whose server failed on it, or went away under it, again and again
_LOOK_S, _LONGEST_LOOK_S = 0.25, 2.0  # between two looks at the server's load: often while the bound moves
_SYNC_S = 5.0
_LONGEST_WAIT_S = 30.0
_PAUSE_S = 0.1  # before a line on which the server failed is tried again, then twice as long


class ServerGone(Exception):
    """The server did not come back in time; what was answered is kept."""


@dataclass(slots=True)
class Counts:
    """How far a batch is."""

    num_read: int = 0  # lines seen
    num_bytes: int = 0  # of these
    num_prompt_tokens: int = 0  # of this run
    num_output_tokens: int = 0
    num_resumed: int = 0  # answered by earlier runs
    is_all_read: bool = False
    starts: list[int] = field(default_factory=list)  # the first line of each input file


class BatchRun:
    """Answers what the journal lacks. `run` may be cancelled at any time; nothing written is lost by it."""

    def __init__(
        self, answerer: Answerer, journal: Journal, throttle: Throttle, counts: Counts, *, patience_s: float
    ) -> None:
        self._answerer = answerer
        self._journal = journal
        self._throttle = throttle
        self._counts = counts
        self._patience_s = patience_s
        self._model = ""
        self._seen: set[bytes] = set()  # digests of custom_ids
        self._is_up = asyncio.Event()
        self._is_up.set()

    async def run(self, lines: Iterable[Line], num_files: int) -> None:
        """Until every line is in the journal. Raises BatchMistake for an input that changed, ServerGone, OSError."""
        self._model = await self._model_name()
        tasks = [asyncio.create_task(work) for work in (self._feed(lines, num_files), self._watch(), self._sync())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._journal.sync()

    async def _feed(self, lines: Iterable[Line], num_files: int) -> None:
        """Read, and ask as there are places, until the last answer is in."""
        try:
            async with asyncio.TaskGroup() as answers:
                async for line in _read(iter(lines)):
                    self._count(line)
                    request = self._request(line)
                    if request is not None:
                        await self._throttle.enter()
                        answers.create_task(self._answer(line, request))
                self._counts.starts += [self._counts.num_read] * (num_files - len(self._counts.starts))
                self._counts.is_all_read = True
        except BaseExceptionGroup as group:  # a disk that is full, as a rule: one reason is enough
            raise group.exceptions[0] from None

    def _count(self, line: Line) -> None:
        counts = self._counts
        counts.starts += [line.index] * (line.file + 1 - len(counts.starts))
        counts.num_read += 1
        counts.num_bytes += 1 + len(line.raw or b"")

    def _request(self, line: Line) -> BatchRequest | None:
        """What is to be asked; None where the line is answered, or is at fault, which becomes its answer."""
        is_done = self._journal.is_done(line.index)
        if is_done:
            self._journal.check_input(line.index, line.crc)
            self._counts.num_resumed += 1
        try:
            request = self._parsed(line)
        except LineFault as fault:
            # Claimed by a line that is at fault, too: what comes first has the id.
            is_new = fault.custom_id is None or self._claim(fault.custom_id)
            if not is_done:
                self._put_error(line, fault.custom_id, fault if is_new else _duplicate(fault.custom_id))
            return None
        is_new = self._claim(request.custom_id)
        if is_done:
            return None
        if not is_new:
            self._put_error(line, request.custom_id, _duplicate(request.custom_id))
            return None
        return request

    def _parsed(self, line: Line) -> BatchRequest:
        if line.raw is None:
            raise LineFault("line_too_long", "", f"the line is longer than {MAX_LINE} bytes")
        request = parse_line(line.raw, line.index + 1)
        if request.model is not None and request.model != self._model:
            message = f"{request.model!r} is not served here: {self._model!r} is"
            raise LineFault("model_not_found", "model", message, request.custom_id)
        return request

    def _claim(self, custom_id: str) -> bool:
        digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
        is_new = digest not in self._seen
        self._seen.add(digest)
        return is_new

    async def _answer(self, line: Line, request: BatchRequest) -> None:
        try:
            await self._ask(line, request)
        finally:
            self._throttle.leave()

    async def _ask(self, line: Line, request: BatchRequest) -> None:
        num_tries = 0
        while True:
            await self._is_up.wait()
            try:
                completion = await self._answerer.answer(request)
                break
            except Overloaded as error:
                self._throttle.refused()
                await asyncio.sleep(min(error.retry_after_s or 1.0, _LONGEST_WAIT_S))
            except (LineFault, SigmoeError) as error:
                num_tries += 1
                is_final = not isinstance(error, Unavailable | ServerFailure) or num_tries >= _MAX_TRIES
                if is_final:
                    self._put_error(line, request.custom_id, error)
                    return
                if isinstance(error, Unavailable):
                    self._is_up.clear()  # `_watch` finds out when it is back
                else:
                    await asyncio.sleep(_PAUSE_S * 2**num_tries)
        self._put(line, request, completion)

    def _put(self, line: Line, request: BatchRequest, completion: Completion) -> None:
        failed = next((choice.error for choice in completion.choices if choice.finish_reason == "error"), None)
        if failed is not None:
            self._put_error(line, request.custom_id, ServerFailure(failed or "the server failed on it"))
            return
        usages = [choice.usage for choice in completion.choices if choice.usage is not None]
        self._counts.num_prompt_tokens += usages[0].prompt_tokens if usages else 0
        self._counts.num_output_tokens += sum(usage.output_tokens for usage in usages)
        text = answer_line(line.index, request, completion, self._model)
        self._journal.write(line.index, line.crc, text, is_error=False)

    def _put_error(self, line: Line, custom_id: str | None, error: LineFault | SigmoeError) -> None:
        text = error_line(line.index, custom_id, fault_of(error))
        self._journal.write(line.index, line.crc, text, is_error=True)

    async def _watch(self) -> None:
        """Look at the server: how busy it is, and whether it is back where it was gone."""
        gone_s: float | None = None
        pause_s = _LOOK_S
        while True:
            try:
                before = self._throttle.limit
                self._throttle.see(await self._answerer.load())
                pause_s = _LOOK_S if self._throttle.limit != before else min(2 * pause_s, _LONGEST_LOOK_S)
                gone_s = None
                self._is_up.set()
            except SigmoeError as error:
                pause_s = _LOOK_S
                gone_s = gone_s or time.monotonic()
                if time.monotonic() - gone_s > self._patience_s:
                    raise ServerGone(f"no answer for {self._patience_s:g} s: {error}") from None
            await asyncio.sleep(pause_s)

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_S)
            self._journal.sync()

    async def _model_name(self) -> str:
        give_up_s = time.monotonic() + self._patience_s
        while True:
            try:
                return await self._answerer.model_name()
            except SigmoeError as error:
                if not isinstance(error, Unavailable) or time.monotonic() >= give_up_s:
                    raise ServerGone(f"no answer for {self._patience_s:g} s: {error}") from None
            await asyncio.sleep(_LOOK_S)


async def _read(lines: Iterator[Line]) -> AsyncIterator[Line]:
    """Lines as they are read in a thread, a few at a time."""
    while chunk := await asyncio.to_thread(_next_few, lines):
        for line in chunk:
            yield line


def _next_few(lines: Iterator[Line]) -> list[Line]:
    chunk, num_bytes = [], 0
    for line in lines:
        chunk.append(line)
        num_bytes += len(line.raw or b"")
        if len(chunk) >= _LOOK_AHEAD or num_bytes >= _LOOK_AHEAD_BYTES:
            break
    return chunk


def _duplicate(custom_id: str | None) -> LineFault:
    return LineFault("duplicate_custom_id", "custom_id", f"{custom_id!r} was used by a line before this one", custom_id)
