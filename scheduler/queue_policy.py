"""Who is served first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

from scheduler.sequence import Sequence

T = TypeVar("T")


def turn(arrival_s: float, priority: int, ageing_s: float) -> float:
    """The place in the line, lower first: each priority is worth `ageing_s` of earlier arrival.

    Everybody ages alike, so the order of two requests never changes and needs no clock.
    """
    return arrival_s - priority * ageing_s


def service_order(sequences: list[Sequence]) -> list[Sequence]:
    """The order in which sequences with more than a row to compute get rows, given them by turn.

    The first in turn stays the first, so nobody starves; then the shortest, so that a short prompt need not wait
    for the long ones before it; the background comes last.
    """
    rest = sorted(sequences[1:], key=lambda sequence: (sequence.is_background, sequence.num_outstanding))
    return [*sequences[:1], *rest]


class Line(Generic[T]):
    """Items in ascending order of (key, number); the number is unique and breaks ties.

    A sorted list: insertion and removal move pointers, 2 us at 10,000 items, and need no stale entries.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, T]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return (entry[2] for entry in self._entries)

    def add(self, key: float, number: int, item: T) -> None:
        """Put an item at its place."""
        insort(self._entries, (key, number, item))

    def remove(self, key: float, number: int) -> None:
        """Take out the item that was added with this key and number."""
        # The pair sorts just before the triple that begins with it.
        where = bisect_left(self._entries, (key, number))
        assert self._entries[where][:2] == (key, number), f"number {number} with key {key} is not in the line"
        del self._entries[where]

    def first(self, count: int) -> list[T]:
        """The first `count` items, fewer where there are not so many."""
        return [entry[2] for entry in self._entries[:count]]

    def last(self) -> T:
        """The last item of a line that is not empty."""
        return self._entries[-1][2]

    def entries(self) -> Iterator[tuple[float, T]]:
        """The items with their keys."""
        return ((key, item) for key, _, item in self._entries)
