"""Which rank holds which expert, and where among its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Placement:
    """Experts of each rank, in the order in which the rank stores them. Each logical expert is held once."""

    experts: tuple[tuple[int, ...], ...]  # [G][experts of the rank]

    def __post_init__(self) -> None:
        held = sorted(expert for rank in self.experts for expert in rank)
        if held != list(range(len(held))):
            raise ValueError(f"placement does not hold each of {len(held)} experts once: {self.experts}")

    @classmethod
    def even(cls, num_experts: int, num_ranks: int) -> Self:
        """Contiguous runs, the first ranks one longer where `num_ranks` does not divide. Ranks may stay empty."""
        if num_experts < 1 or num_ranks < 1:
            raise ValueError(f"no placement of {num_experts} experts on {num_ranks} ranks")
        size, rest = divmod(num_experts, num_ranks)
        starts = [rank * size + min(rank, rest) for rank in range(num_ranks + 1)]
        return cls(tuple(tuple(range(a, b)) for a, b in itertools.pairwise(starts)))

    @classmethod
    def from_table(cls, owner: Sequence[int], num_ranks: int) -> Self:
        """From the owning rank of each expert. Raises ValueError for a rank outside [0, num_ranks)."""
        for expert, rank in enumerate(owner):
            if not 0 <= rank < num_ranks:
                raise ValueError(f"expert {expert} is placed on rank {rank}, ranks are [0, {num_ranks})")
        return cls(tuple(tuple(e for e, r in enumerate(owner) if r == rank) for rank in range(num_ranks)))

    @property
    def num_ranks(self) -> int:
        """G."""
        return len(self.experts)

    @property
    def num_experts(self) -> int:
        """E."""
        return sum(len(rank) for rank in self.experts)

    def local_experts(self, rank: int) -> tuple[int, ...]:
        """Logical ids that a rank holds, in storage order."""
        return self.experts[rank]

    @property
    def owner(self) -> tuple[int, ...]:
        """The rank of each logical expert."""
        return tuple(rank for rank, _ in self._positions())

    @property
    def local_index(self) -> tuple[int, ...]:
        """The place of each logical expert among those of its rank."""
        return tuple(index for _, index in self._positions())

    @property
    def position(self) -> tuple[int, ...]:
        """The place of each logical expert when all ranks' experts are put in a row, rank by rank."""
        order = [expert for rank in self.experts for expert in rank]
        places = [0] * len(order)
        for place, expert in enumerate(order):
            places[expert] = place
        return tuple(places)

    def _positions(self) -> list[tuple[int, int]]:
        table = [(0, 0)] * self.num_experts
        for rank, experts in enumerate(self.experts):
            for index, expert in enumerate(experts):
                table[expert] = (rank, index)
        return table
