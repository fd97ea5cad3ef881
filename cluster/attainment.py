"""How many of the recent answers were as fast as promised."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW_S = 30.0  # short enough to show what a new replica did, long enough for some answers


class Attainment:
    """Shares of first tokens and of answers' further tokens that kept their limits. A limit of None is always kept."""

    def __init__(self, first_token_s: float | None, token_s: float | None, clock: Callable[[], float]) -> None:
        self._first_tokens = _Share(first_token_s)
        self._tokens = _Share(token_s)
        self._clock = clock

    def first_token(self, seconds: float) -> None:
        """A call's first token came after so long."""
        self._first_tokens.add(self._clock(), seconds)

    def token(self, seconds: float) -> None:
        """An answer's further tokens took so long each, on average."""
        self._tokens.add(self._clock(), seconds)

    def share(self) -> float | None:
        """The worse of the two over the recent past; None where nothing was promised, or nothing answered."""
        since = self._clock() - _WINDOW_S
        shares = [share for share in (self._first_tokens.since(since), self._tokens.since(since)) if share is not None]
        return min(shares, default=None)


class _Share:
    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._kept: deque[tuple[float, bool]] = deque(maxlen=10_000)  # when, and whether it was

    def add(self, now: float, seconds: float) -> None:
        if self._limit_s is not None:
            self._kept.append((now, seconds <= self._limit_s))

    def since(self, start: float) -> float | None:
        while self._kept and self._kept[0][0] < start:
            self._kept.popleft()
        return sum(is_kept for _, is_kept in self._kept) / len(self._kept) if self._kept else None
