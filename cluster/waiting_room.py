"""Where requests wait while no rank serves, each no longer than its deadline or its patience allows."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from cluster.assignment import Assigned, Assignment
from scheduler.request import Request
from sigmoe.errors import DeadlineExceeded, SigmoeError, Unavailable

_NO_RANK = "no rank serves at the moment; try again later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long requests wait where no rank serves."""

    resume_s: float = 60.0  # one whose rank was lost
    wait_s: float = 0.0  # a new one; 0: it is refused at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A request that waits."""

    since: float
    num_sequences: int
    is_background: bool


class WaitingRoom:
    """In front of an `Assignment`, whose ranks come and go. Belongs to one event loop."""

    def __init__(self, assignment: Assignment, clock: Callable[[], float]) -> None:
        self._assignment = assignment
        self._clock = clock
        self._guests: dict[str, Guest] = {}
        self._is_open = asyncio.Event()
        self._end: SigmoeError | None = None
        self.look()

    @property
    def num_sequences(self) -> int:
        """Those that wait here."""
        return sum(guest.num_sequences for guest in self._guests.values())

    @property
    def guests(self) -> tuple[Guest, ...]:
        """Their requests."""
        return tuple(self._guests.values())

    def look(self) -> bool:
        """Whether any rank serves; those who wait learn of it. To be called whenever that may have changed."""
        if self._assignment.ranks:
            self._is_open.set()
        else:
            self._is_open.clear()
        return self._is_open.is_set()

    def close(self, error: SigmoeError) -> None:
        """Send everybody away, now and later."""
        self._end = error
        self._is_open.set()

    async def place(self, request: Request, deadline: float | None, patience_s: float) -> Assigned:
        """A request's place, once there is one. Raises Unavailable, DeadlineExceeded, or what `close` was given."""
        start = self._clock()
        if self._end is not None:
            raise self._end
        give_up, end = start + patience_s, math.inf if deadline is None else deadline
        while (assigned := self._assignment.assign(request.prompt, request.num_sequences)) is None:
            if patience_s == 0:
                raise Unavailable(_NO_RANK)
            self._guests[request.request_id] = Guest(
                since=start, num_sequences=request.num_sequences, is_background=request.priority < 0
            )
            try:
                await asyncio.wait_for(self._is_open.wait(), min(give_up, end) - self._clock())
            except TimeoutError:
                if end < give_up:
                    raise DeadlineExceeded("the deadline passed while no rank served") from None
                raise Unavailable(f"no rank served for {patience_s:g} s") from None
            finally:
                del self._guests[request.request_id]
            if self._end is not None:
                raise self._end
        return assigned
