"""What a rank's steps brought forth, until somebody takes it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from itertools import chain
from math import inf

from scheduler.request import ALONE, Round, TokenDelta

# A take costs 1 to 2 ms of processor time over Ray, and each stream's response some 0.2 ms in the gateway; on a small
# machine the steps lack both. So streams move in beats, faster than the eye reads, that leave the steps most of it.
RESPONSES_PER_CORE_S = 100.0  # of all streams together, but for the longest beat
SHORTEST_BEAT_S = 0.02
LONGEST_BEAT_S = 0.15
BACKGROUND_BEAT_S = 0.5  # nobody sits before it; still often enough for stop strings and for filling places


class Outbox:
    """Token deltas in order. First tokens and ends can be taken at once, others a beat after the last take.

    Those of the background are put together for each sequence, and go in slow beats of their own. One thread puts, one
    takes.
    """

    def __init__(self, num_cores: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`num_cores` (default: those of this machine) share the work of streaming."""
        self._responses_per_s = RESPONSES_PER_CORE_S * (num_cores or os.cpu_count() or 1)
        self._clock = clock
        self._deltas: list[TokenDelta] = []
        self._begun: set[tuple[str, int]] = set()  # sequences with a delta before
        self._background: dict[str, int] = {}  # sequences that have not ended, by request id
        self._held: dict[tuple[str, int], list[TokenDelta]] = {}  # of the background, by sequence
        self._held_taken_at = -inf
        self._taken_at = -inf
        self._is_urgent = False
        self._is_awaited = False  # the taker is past the beat
        self._is_closed = False
        self._changed = threading.Condition()

    def expect_background(self, request_id: str, num_sequences: int) -> None:
        """Take the deltas of this request, of which there are none yet, for those of the background."""
        with self._changed:
            self._background[request_id] = num_sequences

    def put(self, deltas: Iterable[TokenDelta]) -> None:
        """Add what a step brought."""
        with self._changed:
            for delta in deltas:
                if delta.request_id in self._background:
                    self._hold(delta)
                else:
                    self._deltas.append(delta)
                    self._is_urgent |= self._is_turn(delta)
            if self._is_urgent or (self._is_awaited and self._has_any):
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
            return self._is_closed and not self._deltas and not self._held

    def take(self, timeout_s: float) -> tuple[TokenDelta, ...]:
        """All deltas, waiting up to `timeout_s` for the first; none once the outbox is closed and empty."""
        with self._changed:
            beat_left_s = self._taken_at + self.beat_s - self._clock()
            self._changed.wait_for(lambda: self._is_urgent or self._is_closed, min(beat_left_s, timeout_s))
            self._is_awaited = True
            self._changed.wait_for(lambda: self._has_any or self._is_closed, timeout_s)
            self._is_awaited = self._is_urgent = False
            deltas, self._deltas = self._deltas, []
            self._taken_at = self._clock()
            if self._is_held_due:
                deltas += map(_joined, self._held.values())
                self._held.clear()
                self._held_taken_at = self._taken_at
            return tuple(deltas)

    @property
    def beat_s(self) -> float:
        """Seconds between two takes, with as many streams as there are."""
        if not self._begun:
            return BACKGROUND_BEAT_S if self._background else SHORTEST_BEAT_S
        return min(max(len(self._begun) / self._responses_per_s, SHORTEST_BEAT_S), LONGEST_BEAT_S)

    @property
    def _has_any(self) -> bool:
        return bool(self._deltas) or (bool(self._held) and self._is_held_due)

    @property
    def _is_held_due(self) -> bool:
        """A beat after the last one, or at once where nothing more can come to what is held."""
        return self._is_closed or not self._background or self._clock() >= self._held_taken_at + BACKGROUND_BEAT_S

    def _hold(self, delta: TokenDelta) -> None:
        self._held.setdefault((delta.request_id, delta.sequence_index), []).append(delta)
        if delta.finish_reason is not None:
            self._background[delta.request_id] -= 1
            if not self._background[delta.request_id]:
                del self._background[delta.request_id]
                self._is_urgent |= not self._background

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


def _joined(deltas: list[TokenDelta]) -> TokenDelta:
    """What several deltas of one sequence say, in one."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    has_rounds = any(delta.rounds for delta in deltas)
    return TokenDelta(
        request_id=last.request_id,
        sequence_index=last.sequence_index,
        token_ids=tuple(chain.from_iterable(delta.token_ids for delta in deltas)),
        rounds=tuple(chain.from_iterable(map(_rounds_of, deltas))) if has_rounds else (),
        logprobs=tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
        prompt_logprobs=deltas[0].prompt_logprobs,  # they come with the first
        finish_reason=last.finish_reason,
        error=last.error,
        usage=last.usage,
    )


def _rounds_of(delta: TokenDelta) -> tuple[Round, ...]:
    return delta.rounds or (ALONE,) * len(delta.token_ids)
