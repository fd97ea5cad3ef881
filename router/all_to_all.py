"""Dispatch and combine over a process group: each copy of a row travels to the rank of its expert and back.

On the sender rows lie sorted by place: [rank 0: its expert 0, 1, ...][rank 1: ...]. They arrive as
[from rank 0: my expert 0, 1, ...][from rank 1: ...] and are brought into the order that the experts read,
[my expert 0: from rank 0, 1, ...][my expert 1: ...]. The way back is the same road in reverse.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from kernels.permute import Answers, expert_order, gather_rows, sort_by_expert
from router.collectives import CollectiveCount
from router.dispatch import DispatchHandle, ExpertChoice
from router.load_stats import LoadStats
from router.placement import Placement


class AllToAllDispatcher:
    """Exact splits: counts are exchanged first, then rows, then answers; three collectives per layer.

    Every rank of the group must call `dispatch` and `combine` in the same order, with zero rows too.
    """

    local_load: LoadStats | None = None  # experts of other ranks are chosen, too

    def __init__(
        self, placement: Placement, rank: int, group: dist.ProcessGroup, device: torch.device | None = None
    ) -> None:
        assert group.size() == placement.num_ranks, f"group of {group.size()}, placement of {placement.num_ranks}"
        self.load = LoadStats(placement.num_experts, device)
        self.collectives = CollectiveCount()
        self._group = group
        self._sizes = [len(experts) for experts in placement.experts]
        self._num_local = self._sizes[rank]
        # logical id -> place, when all ranks' experts stand in a row
        self._place = torch.tensor(placement.position, dtype=torch.int32, device=device)
        self._expert_of_block = torch.arange(self._num_local, dtype=torch.int32, device=device).repeat(group.size())

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        """Send a copy of each row [T, H] per expert; returns a handle and the rows [R, H] received, by expert."""
        counts, source_rows = expert_order(self._place[choice.ids], self._place.shape[0])
        self.load.add(counts[self._place])
        arriving = self._exchange_counts(counts)  # [G, local experts]
        send, recv = self._splits(counts, arriving)
        rows = self._exchange(gather_rows(hidden, source_rows, source_rows.numel()), send, recv)
        arrived_for = self._expert_of_block.repeat_interleave(arriving.flatten(), output_size=sum(recv))
        copies = sort_by_expert(rows, arrived_for[:, None], self._num_local)
        handle = DispatchHandle(
            counts=copies.counts,
            weights=choice.weights,
            source_rows=source_rows,
            send_splits=tuple(send),
            recv_splits=tuple(recv),
            sorted_rows=copies.places,
            order=copies.order,
        )
        return handle, copies.rows

    def combine(self, rows: torch.Tensor, handle: DispatchHandle, plus: torch.Tensor | None = None) -> Answers:
        """Send the experts' outputs [R, H] home, for the weighted sums [T, H]."""
        assert handle.sorted_rows is not None, "a handle of another dispatcher"
        as_arrived = rows.index_select(0, handle.sorted_rows.flatten())
        home = self._exchange(as_arrived, list(handle.recv_splits), list(handle.send_splits))
        return Answers(home, handle.source_rows, handle.weights, plus)

    def _exchange_counts(self, counts: torch.Tensor) -> torch.Tensor:
        """Rows per place [E] -> rows that will arrive from each rank for each local expert, [G, local experts]."""
        num_ranks = len(self._sizes)
        arriving = counts.new_empty(num_ranks * self._num_local)
        splits = [self._num_local] * num_ranks
        self.collectives.total += 1
        dist.all_to_all_single(arriving, counts, splits, self._sizes, group=self._group)
        return arriving.view(num_ranks, self._num_local)

    def _splits(self, counts: torch.Tensor, arriving: torch.Tensor) -> tuple[list[int], list[int]]:
        """Rows to each rank and from it, which the host has to know."""
        return [int(part.sum()) for part in torch.split(counts, self._sizes)], arriving.sum(1).tolist()

    def _exchange(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        arrived = rows.new_empty(sum(recv), rows.shape[1])
        self.collectives.total += 1
        # Bytes: gloo has no bf16.
        dist.all_to_all_single(arrived.view(torch.uint8), rows.view(torch.uint8), recv, send, group=self._group)
        return arrived
