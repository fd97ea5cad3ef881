"""What a rank's steps brought forth, until somebody takes it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from math import inf

from scheduler.request import TokenDelta

# A take costs 1 to 2 ms of processor time over Ray, and each stream's response some 0.2 ms in the gateway; on a small
# machine the steps lack both. So streams move in beats, faster than the eye reads, that leave the steps most of it.
RESPONSES_PER_CORE_S = 100.0  # of all streams together, but for the longest beat
SHORTEST_BEAT_S = 0.02
LONGEST_BEAT_S = 0.15


class Outbox:
    """Token deltas in order. First tokens and ends can be taken at once, others a beat after the last take.

    One thread puts, one takes.
    """

    def __init__(self, num_cores: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`num_cores` (default: those of this machine) share the work of streaming."""
        self._responses_per_s = RESPONSES_PER_CORE_S * (num_cores or os.cpu_count() or 1)
        self._clock = clock
        self._deltas: list[TokenDelta] = []
        self._begun: set[tuple[str, int]] = set()  # sequences with a delta before
        self._taken_at = -inf
        self._is_urgent = False
        self._is_awaited = False  # the taker is past the beat
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, deltas: Iterable[TokenDelta]) -> None:
        """Add what a step brought."""
        with self._changed:
            for delta in deltas:
                self._deltas.append(delta)
                self._is_urgent |= self._is_turn(delta)
            if self._deltas and (self._is_urgent or self._is_awaited):
                self._changed.notify_all()

    def close(self) -> None:
        """Nothing will be put any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_drained(self) -> bool:
        """Whether it is closed and everything was taken."""
        with self._changed:
            return self._is_closed and not self._deltas

    def take(self, timeout_s: float) -> tuple[TokenDelta, ...]:
        """All deltas, waiting up to `timeout_s` for the first; none once the outbox is closed and empty."""
        with self._changed:
            beat_left_s = self._taken_at + self.beat_s - self._clock()
            self._changed.wait_for(lambda: self._is_urgent or self._is_closed, min(beat_left_s, timeout_s))
            self._is_awaited = True
            self._changed.wait_for(lambda: self._deltas or self._is_closed, timeout_s)
            self._is_awaited = self._is_urgent = False
            deltas, self._deltas = tuple(self._deltas), []
            self._taken_at = self._clock()
            return deltas

    @property
    def beat_s(self) -> float:
        """Seconds between two takes, with as many streams as there are."""
        return min(max(len(self._begun) / self._responses_per_s, SHORTEST_BEAT_S), LONGEST_BEAT_S)

    def _is_turn(self, delta: TokenDelta) -> bool:
        """Whether a sequence begins or ends with this delta."""
        sequence = (delta.request_id, delta.sequence_index)
        if delta.finish_reason is not None:
            self._begun.discard(sequence)
            return True
        if sequence in self._begun:
            return False
        self._begun.add(sequence)
        return True
