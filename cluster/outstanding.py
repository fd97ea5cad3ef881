"""Which requests a rank still works on for its gateway, so that they can be cancelled when that one is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from scheduler.request import Request, TokenDelta


class Outstanding:
    """Ids of requests with sequences that have not ended. Any thread may call."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        """A request was submitted."""
        with self._lock:
            self._left[request.request_id] = request.num_sequences

    def settle(self, deltas: Iterable[TokenDelta]) -> None:
        """Take away what has ended."""
        for delta in deltas:
            if delta.finish_reason is None:
                continue
            with self._lock:
                left = self._left.get(delta.request_id, 0) - 1
                if left > 0:
                    self._left[delta.request_id] = left
                else:
                    self._left.pop(delta.request_id, None)

    @property
    def ids(self) -> tuple[str, ...]:
        """What is under way."""
        with self._lock:
            return tuple(self._left)
