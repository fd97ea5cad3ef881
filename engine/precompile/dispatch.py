"""The dispatcher of a group of which nobody else is there: what would arrive has a shape, and that is all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist

from router.all_to_all import AllToAllDispatcher
from router.dispatch import Dispatcher, DispatchHandle, ExpertChoice
from router.fixed_capacity import FixedCapacityDispatcher
from router.group import GroupDispatcher
from router.local import LocalDispatcher
from router.placement import Placement


def dispatcher_of(placement: Placement, rank: int, device: torch.device) -> Dispatcher:
    """As a rank of the group has it, but for the sending."""
    if placement.num_ranks == 1:
        return LocalDispatcher(placement.num_experts, device)
    return _Group(placement, rank, device)


@dataclass(frozen=True, slots=True)
class _Members:
    """Of a group as much as its size."""

    num_ranks: int

    def size(self) -> int:
        return self.num_ranks


class _Exact(AllToAllDispatcher):
    """As many copies arrive as are sent."""

    _num_copies = 0

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        self._num_copies = choice.ids.numel()
        return super().dispatch(hidden, choice)

    def _exchange_counts(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.new_empty(len(self._sizes), self._num_local)

    def _splits(self, counts: torch.Tensor, arriving: torch.Tensor) -> tuple[list[int], list[int]]:
        others = [0] * (len(self._sizes) - 1)
        return [self._num_copies, *others], [self._num_copies, *others]

    def _exchange(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        return rows.new_empty(sum(recv), rows.shape[1])


class _Fixed(FixedCapacityDispatcher):
    def _everyones(self, mine: torch.Tensor) -> torch.Tensor:
        return mine.new_empty(self._num_ranks * mine.shape[0], mine.shape[1])

    def _sent_home(self, answers: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(answers)


class _Group(GroupDispatcher):
    def __init__(self, placement: Placement, rank: int, device: torch.device) -> None:
        group = cast(dist.ProcessGroup, _Members(placement.num_ranks))
        self._exact = _Exact(placement, rank, group, device)
        self.load, self.collectives = self._exact.load, self._exact.collectives
        self._fixed = _Fixed(placement, rank, group, self.load, self.collectives)
