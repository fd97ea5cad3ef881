"""How many requests of a batch are under way: as many as fill what the server has free, and no more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

_GROWTH = 1.5
_LEAST = 4


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences on all ranks, of everybody."""

    num_running: int
    num_waiting: int


class Throttle:
    """A bound on what is under way, moved by what the server reports. Belongs to one event loop.

    The ranks are full when some sequences wait; a few must, so that a place that comes free is filled at once.
    """

    def __init__(self, most: int, first: int) -> None:
        self.limit = min(max(first, _LEAST), most)
        self.num_active = 0
        self._most = most
        self._changed = asyncio.Event()

    async def enter(self) -> None:
        """Wait for a place and take it."""
        while self.num_active >= self.limit:
            self._changed.clear()
            await self._changed.wait()
        self.num_active += 1

    def leave(self) -> None:
        """Give a place back."""
        self.num_active -= 1
        self._changed.set()

    def see(self, load: Load) -> None:
        """Grow while nobody waits; shrink by what waits beyond a few."""
        cushion = max(_LEAST, load.num_running // 4)
        if load.num_waiting > 2 * cushion:
            self._move(self.limit - (load.num_waiting - 2 * cushion))
        elif load.num_waiting < cushion and self.num_active >= self.limit:
            self._move(int(self.limit * _GROWTH) + 1)

    def refused(self) -> None:
        """The server admits no more: half of what is under way will do for now."""
        self._move(min(self.limit, self.num_active) // 2)

    def _move(self, limit: int) -> None:
        self.limit = min(max(limit, 1), self._most)
        self._changed.set()
