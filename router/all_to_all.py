"""Dispatch and combine over a process group: each copy of a row travels to the rank of its expert and back.

On the sender rows lie sorted by place: [rank 0: its expert 0, 1, ...][rank 1: ...]. They arrive as
[from rank 0: my expert 0, 1, ...][from rank 1: ...] and are brought into the order that the experts read,
[my expert 0: from rank 0, 1, ...][my expert 1: ...]. The way back is the same road in reverse.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from kernels.permute import combine_rows, expert_order, gather_rows
from router.dispatch import DispatchHandle, ExpertChoice
from router.load_stats import LoadStats
from router.placement import Placement


class AllToAllDispatcher:
    """Exact splits: counts are exchanged first, then rows, then answers; three collectives per layer.

    Every rank of the group must call `dispatch` and `combine` in the same order, with zero rows too.
    """

    def __init__(self, placement: Placement, rank: int, group: dist.ProcessGroup) -> None:
        assert group.size() == placement.num_ranks, f"group of {group.size()}, placement of {placement.num_ranks}"
        self.load = LoadStats(placement.num_experts)
        self._group = group
        self._sizes = [len(experts) for experts in placement.experts]
        self._num_local = self._sizes[rank]
        self._place = torch.tensor(placement.position, dtype=torch.int32)  # logical id -> place, rank by rank
        self._bounds = torch.tensor(self._sizes).cumsum(0)
        self._expert_of_block = torch.arange(self._num_local, dtype=torch.int32).repeat(placement.num_ranks)

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        """Send a copy of each row [T, H] per expert; returns a handle and the rows [R, H] received, by expert."""
        places = self._place[choice.ids]
        counts, source_rows = expert_order(places, len(self._place))
        self.load.add(counts[self._place])
        arriving = self._exchange_counts(counts)  # [G, local experts]
        send, recv = self._splits(counts), arriving.sum(1).tolist()
        rows = self._exchange(gather_rows(hidden, source_rows, source_rows.numel()), send, recv)
        order = self._arrival_order(arriving)
        handle = DispatchHandle(
            counts=arriving.sum(0, dtype=torch.int32),
            weights=choice.weights,
            source_rows=source_rows,
            send_splits=tuple(send),
            recv_splits=tuple(recv),
            arrival_order=order,
        )
        return handle, rows.index_select(0, order)

    def combine(self, rows: torch.Tensor, handle: DispatchHandle) -> torch.Tensor:
        """Send the experts' outputs [R, H] home; returns the weighted sums [T, H]."""
        assert handle.arrival_order is not None, "a handle of another dispatcher"
        as_arrived = torch.empty_like(rows).index_copy_(0, handle.arrival_order, rows)
        home = self._exchange(as_arrived, list(handle.recv_splits), list(handle.send_splits))
        return combine_rows(home, handle.source_rows, handle.weights)

    def _exchange_counts(self, counts: torch.Tensor) -> torch.Tensor:
        """Rows per place [E] -> rows that will arrive from each rank for each local expert, [G, local experts]."""
        num_ranks = len(self._sizes)
        arriving = counts.new_empty(num_ranks * self._num_local)
        splits = [self._num_local] * num_ranks
        dist.all_to_all_single(arriving, counts, splits, self._sizes, group=self._group)
        return arriving.view(num_ranks, self._num_local)

    def _splits(self, counts: torch.Tensor) -> list[int]:
        """Rows that go to each rank."""
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])[self._bounds].tolist()
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def _exchange(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        arrived = rows.new_empty(sum(recv), rows.shape[1])
        # Bytes: gloo has no bf16.
        dist.all_to_all_single(arrived.view(torch.uint8), rows.view(torch.uint8), recv, send, group=self._group)
        return arrived

    def _arrival_order(self, arriving: torch.Tensor) -> torch.Tensor:
        """Where each expert-sorted row lies among the arrived ones: [R]."""
        expert = self._expert_of_block.repeat_interleave(arriving.flatten())
        return expert.argsort(stable=True)
