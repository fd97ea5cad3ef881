"""Dispatch and combine where one rank holds every expert."""

from __future__ import annotations

import torch

from kernels.permute import Answers, sort_by_expert
from router.collectives import CollectiveCount
from router.dispatch import DispatchHandle, ExpertChoice
from router.load_stats import LoadStats


class LocalDispatcher:
    """Rows are sorted by expert and put back; nothing leaves the process."""

    def __init__(self, num_experts: int, device: torch.device | None = None) -> None:
        self.collectives = CollectiveCount()  # a group of one makes none
        self.load = LoadStats(num_experts, device)
        self.local_load: LoadStats | None = self.load
        self._num_experts = num_experts

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        """Sort a copy of each row [T, H] per expert; returns a handle and rows, see `Dispatcher`."""
        copies = choice.copies
        if copies is None:
            copies = sort_by_expert(hidden, choice.ids, self._num_experts, self.load.totals)
        handle = DispatchHandle(
            counts=copies.counts, weights=choice.weights, source_rows=copies.places, order=copies.order
        )
        return handle, copies.rows

    def combine(self, rows: torch.Tensor, handle: DispatchHandle, plus: torch.Tensor | None = None) -> Answers:
        """For the weighted sum of each row's experts: [T * K, H] -> [T, H]."""
        return Answers(rows, handle.source_rows, handle.weights, plus)
