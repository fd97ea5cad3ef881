"""Which rank serves a request: the one that has most of its prompt cached, unless others have much less to do.

A rank's load and a request's cost are counted in rows: those of its prompt, and for each sequence as many as cost
what its decodes will. A cached prefix saves its rows, so the cheapest rank is the least load minus the match.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

# A decode step reads all weights for a row, a prefill step shares them among many: a short answer costs about as
# much as so many prompt rows. Chosen by reasoning, not measured.
_ROWS_PER_SEQUENCE = 64
_FIRST_DEPTH = 32  # tokens of the shortest prefix that counts; the next ones double
_MAX_PREFIXES = 16_384  # remembered, the least recently used forgotten first


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """A request's place, to be given back with `release`."""

    rank: int
    load: int  # rows


class Assignment:
    """Loads and recent prefixes of the ranks that serve."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self._loads = dict.fromkeys(sorted(ranks), 0)
        self._ranks_by_prefix: OrderedDict[int, int] = OrderedDict()

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those that serve, ascending."""
        return tuple(self._loads)

    @property
    def loads(self) -> dict[int, int]:
        """Rows under way on each rank."""
        return dict(self._loads)

    def assign(self, prompt: tuple[int, ...], num_sequences: int) -> Assigned | None:
        """The rank for a prompt, counted into its load; None when no rank serves. Ties go to the lower rank."""
        if not self._loads:
            return None
        prefixes = _prefixes(prompt)
        matched = self._matches(prefixes)
        rank = min(self._loads, key=lambda rank: (self._loads[rank] - matched.get(rank, 0), rank))
        self._remember(prefixes, rank)
        load = len(prompt) - matched.get(rank, 0) + num_sequences * _ROWS_PER_SEQUENCE
        self._loads[rank] += load
        return Assigned(rank=rank, load=load)

    def release(self, assigned: Assigned) -> None:
        """Take an ended request off its rank's load."""
        if assigned.rank in self._loads:
            self._loads[assigned.rank] -= assigned.load

    def lose(self, rank: int) -> None:
        """The rank serves no more; what it cached is gone."""
        self._loads.pop(rank, None)
        stale = [prefix for prefix, owner in self._ranks_by_prefix.items() if owner == rank]
        for prefix in stale:
            del self._ranks_by_prefix[prefix]

    def join(self, rank: int) -> None:
        """The rank serves (again), with nothing to do."""
        self._loads.setdefault(rank, 0)
        self._loads = dict(sorted(self._loads.items()))

    def _matches(self, prefixes: list[tuple[int, int]]) -> dict[int, int]:
        """Tokens of the longest prefix that each rank saw lately."""
        matched: dict[int, int] = {}
        for depth, prefix in prefixes:
            owner = self._ranks_by_prefix.get(prefix)
            if owner is not None:
                matched[owner] = depth
        return matched

    def _remember(self, prefixes: list[tuple[int, int]], rank: int) -> None:
        for _, prefix in prefixes:
            self._ranks_by_prefix[prefix] = rank
            self._ranks_by_prefix.move_to_end(prefix)
        while len(self._ranks_by_prefix) > _MAX_PREFIXES:
            self._ranks_by_prefix.popitem(last=False)


def _prefixes(prompt: tuple[int, ...]) -> list[tuple[int, int]]:
    """(length, hash) of the prefixes of doubling length. A hash collision costs speed alone."""
    depths = []
    depth = _FIRST_DEPTH
    while depth <= len(prompt):
        depths.append(depth)
        depth *= 2
    return [(depth, hash(prompt[:depth])) for depth in depths]
