"""How many calls may be under way at once, and when a refused one should come back.

Calls of the background (priority below 0) take what is free; they are no reason to refuse anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sigmoe.errors import Overloaded

_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 30.0
_MEMORY = 0.9  # weight of the past in the mean interval between two endings


class Admission:
    """A bound on the calls under way. Refusals are spread: the k-th in a row is told to wait for k endings.

    The foreground is bounded alone; the background may only fill up to the same bound what the foreground leaves.
    """

    def __init__(self, max_requests: int, clock: Callable[[], float]) -> None:
        self.max_requests = max_requests
        self.num_active = 0
        self._num_background = 0  # of these
        self._clock = clock
        self._num_refused = 0  # since the last ending
        self._last_end_s: float | None = None
        self._interval_s = 0.0  # smoothed, between two endings

    @contextmanager
    def admit(self, *, is_background: bool = False) -> Iterator[None]:
        """Hold a place. Raises Overloaded with a retry hint when there is none."""
        num_counted = self.num_active if is_background else self.num_active - self._num_background
        if num_counted >= self.max_requests:
            self._num_refused += 1
            raise Overloaded(
                f"{self.max_requests} requests are under way, the most this server admits; try again later",
                self.retry_after_s,
            )
        self.num_active += 1
        self._num_background += is_background
        try:
            yield
        finally:
            self.num_active -= 1
            self._num_background -= is_background
            self._end()

    @property
    def retry_after_s(self) -> float:
        """Seconds until a place should be free for the caller refused last."""
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, self._interval_s * self._num_refused))

    def _end(self) -> None:
        now_s = self._clock()
        if self._last_end_s is not None:
            self._interval_s = _MEMORY * self._interval_s + (1 - _MEMORY) * (now_s - self._last_end_s)
        self._last_end_s = now_s
        self._num_refused = 0
