"""The dispatcher of a group: exact splits for steps of any size, fixed capacity for those that are padded alike."""

from __future__ import annotations

import torch
import torch.distributed as dist

from kernels.permute import Answers
from router.all_to_all import AllToAllDispatcher
from router.dispatch import DispatchHandle, ExpertChoice
from router.fixed_capacity import FixedCapacityDispatcher
from router.load_stats import LoadStats
from router.placement import Placement


class GroupDispatcher:
    """Chooses by what the step says of itself, so the ranks of a group agree as they agree on the step."""

    local_load: LoadStats | None = None  # experts of other ranks are chosen, too

    def __init__(
        self, placement: Placement, rank: int, group: dist.ProcessGroup, device: torch.device | None = None
    ) -> None:
        self._exact = AllToAllDispatcher(placement, rank, group, device)
        self.load, self.collectives = self._exact.load, self._exact.collectives
        self._fixed = FixedCapacityDispatcher(placement, rank, group, self.load, self.collectives)

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        """See `Dispatcher`."""
        return (self._fixed if choice.is_padded else self._exact).dispatch(hidden, choice)

    def combine(self, rows: torch.Tensor, handle: DispatchHandle, plus: torch.Tensor | None = None) -> Answers:
        """See `Dispatcher`."""
        return (self._exact if handle.copies is None else self._fixed).combine(rows, handle, plus)
