"""Plays items against a server and writes down what happens: one record for each request, whatever its end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from sigmoe.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServerFailure,
    SigmoeError,
    Unavailable,
)
from sigmoe.loadtest.record import OK, UNFINISHED, Record
from sigmoe.loadtest.workload import Item, Message
from sigmoe.results import Chunk, Usage
from sigmoe.sampling import Sampling

_CODES: tuple[tuple[type[SigmoeError], str], ...] = (
    (InvalidRequest, "INVALID_ARGUMENT"),
    (Overloaded, "RESOURCE_EXHAUSTED"),
    (DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Cancelled, "CANCELLED"),
    (Unavailable, "UNAVAILABLE"),
)
IN_STREAM = "INTERNAL"  # a sequence that failed although the call ended well


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call: a prompt to be continued, or a conversation to be answered."""

    prompt: str | tuple[int, ...] | None
    messages: tuple[Message, ...]
    sampling: Sampling


class Target(Protocol):
    """What is tested: a server, or a test's simulation of one."""

    def ask(self, ask: Ask) -> AsyncIterator[Chunk]:
        """The chunks of one answer, with token ids. Raises SigmoeError; leaving it cancels the request."""
        ...


@dataclass(slots=True, kw_only=True)
class Tally:
    """What live progress and backlog are read from."""

    sent: int = 0
    in_flight: int = 0
    tokens: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    records: list[Record] = field(default_factory=list)


@dataclass(slots=True)
class _Answer:
    """What has come of one answer so far."""

    responses: list[tuple[float, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""
    usage: Usage | None = None

    def add(self, chunk: Chunk, now_s: float) -> None:
        if chunk.token_ids:
            self.responses.append((now_s, len(chunk.token_ids)))
        self.texts.append(chunk.text)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.error = chunk.error or self.error
        self.usage = chunk.usage or self.usage


class Player:
    """`now` is the level's clock; `sampling` holds for all requests, `seed` draws each one's own."""

    def __init__(self, target: Target, now: Callable[[], float], sampling: Sampling, *, seed: int) -> None:
        self._target = target
        self._now = now
        self._sampling = sampling
        self._seed = seed
        self._num_items = 0
        self.tally = Tally()

    async def play(self, item: Item, intended_s: float, may_go_on: Callable[[], bool]) -> bool:
        """Ask everything of an item; returns whether all was answered. A round follows the one before at once.

        When it is cancelled, it notes the request as unfinished and ends.
        """
        number, self._num_items = self._num_items, self._num_items + 1
        said: tuple[Message, ...] = ()
        for index in range(item.num_requests):
            if index and not may_go_on():
                break
            if item.rounds:
                said += item.rounds[index]
            ask = Ask(prompt=item.prompt, messages=said, sampling=self._sampling_of(item, number))
            answer = await self._call(ask, (number, index), intended_s)
            if answer is None:
                return False
            said += ({"role": "assistant", "content": "".join(answer.texts) or " "},)
            intended_s = self._now()
        return True

    def _sampling_of(self, item: Item, number: int) -> Sampling:
        own = replace(self._sampling, seed=(self._seed * 1_000_003 + number) % 2**64)
        if item.output_tokens is None:
            return own
        return replace(own, max_tokens=item.output_tokens, ignore_eos=True)

    async def _call(self, ask: Ask, place: tuple[int, int], intended_s: float) -> _Answer | None:
        """One request from beginning to end; None where it was not answered."""
        tally, answer = self.tally, _Answer()
        tally.sent += 1
        tally.in_flight += 1
        sent_s, code, error = self._now(), UNFINISHED, ""
        try:
            async for chunk in self._target.ask(ask):
                answer.add(chunk, self._now())
                tally.tokens += len(chunk.token_ids)
            code, error = _ending(answer)
        except SigmoeError as failure:
            code, error = code_of(failure), str(failure)
        finally:
            tally.in_flight -= 1
            tally.codes[code] += 1
            tally.records.append(
                Record(
                    item=place[0],
                    round=place[1],
                    intended_s=intended_s,
                    sent_s=sent_s,
                    ended_s=self._now(),
                    code=code,
                    error=error,
                    finish_reason=answer.finish_reason,
                    responses=tuple(answer.responses),
                    usage=answer.usage,
                )
            )
        return answer if code == OK else None


def code_of(error: SigmoeError) -> str:
    """The name of the gRPC code that became this error."""
    if isinstance(error, ServerFailure):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), "UNKNOWN")


def _ending(answer: _Answer) -> tuple[str, str]:
    if answer.finish_reason == "error":
        return IN_STREAM, answer.error or "the sequence failed on the server"
    if not answer.finish_reason:
        return IN_STREAM, "the stream ended without a finish reason"
    return OK, ""


async def backoff(num_failed: int) -> None:
    """What a closed loop's client waits after so many failures in a row: 0.1 s, doubled up to 1 s."""
    await asyncio.sleep(min(1.0, 0.1 * 2 ** min(num_failed - 1, 10)))
