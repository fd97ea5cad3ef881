"""Dispatch and combine with shapes that no routing changes: every rank brings T rows, and the host learns no count.

Each rank gets every row of the group once, with the ids of its experts, [from rank 0: its T rows][from rank 1: ...],
and computes the copies that are meant for its own experts. On the way back each peer has T * K places for the answers,
and copy (t, k) comes home in place t * K + k of the rank that holds its expert. So nothing can be too much for its
place, and the sum of a row is over the same numbers in the same order as everywhere else.

Bytes that a rank sends, of rows of H elements: (G - 1) * T * H out, which is what its capacity takes, and
(G - 1) * T * K * H back, of which only the copies that were computed mean anything.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from kernels.permute import Answers, sort_by_expert
from router.collectives import CollectiveCount
from router.dispatch import DispatchHandle, ExpertChoice
from router.load_stats import LoadStats
from router.placement import Placement

# torch 2.13 calls it all_gather_single, and warns of the name before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class FixedCapacityDispatcher:
    """Two collectives per layer, of sizes that T alone decides: a graph can hold them.

    Every rank of the group must call `dispatch` and `combine` in the same order with the same T.
    """

    def __init__(
        self,
        placement: Placement,
        rank: int,
        group: dist.ProcessGroup,
        load: LoadStats,
        collectives: CollectiveCount,
    ) -> None:
        assert group.size() == placement.num_ranks, f"group of {group.size()}, placement of {placement.num_ranks}"
        self._load = load
        self._collectives = collectives
        self._group = group
        self._num_ranks = placement.num_ranks
        self._num_local = len(placement.local_experts(rank))
        local = [-1] * placement.num_experts
        for index, expert in enumerate(placement.local_experts(rank)):
            local[expert] = index
        # Both by logical id, with an entry more for the id -1, which stands for nobody.
        self._local_of = torch.tensor([*local, -1], dtype=torch.int32, device=load.device)
        self._owner_of = torch.tensor([*placement.owner, -1], dtype=torch.int32, device=load.device)

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        """Share rows [T, H]; returns a handle and rows, see `Dispatcher`: G * T * K, first those of experts here."""
        (num_rows, top_k), ids = choice.ids.shape, choice.ids
        rows, all_ids = self._gather(hidden, ids)
        copies = sort_by_expert(rows, self._local_of[all_ids], self._num_local)
        self._load.add_choices(ids)
        num_copies = num_rows * top_k
        own = torch.arange(num_copies, dtype=torch.int32, device=ids.device).view(num_rows, top_k)
        handle = DispatchHandle(
            counts=copies.counts,
            weights=choice.weights,
            source_rows=torch.where(ids < 0, -1, self._owner_of[ids] * num_copies + own),
            copies=copies.places,
            order=copies.order,
        )
        return handle, copies.rows

    def combine(self, rows: torch.Tensor, handle: DispatchHandle, plus: torch.Tensor | None = None) -> Answers:
        """Bring the experts' outputs [G * T * K, H] home, for the weighted sums [T, H]."""
        assert handle.copies is not None, "a handle of another dispatcher"
        # A place that no copy of this rank has is sent all the same, with whatever lies in the first row.
        answers = rows.index_select(0, handle.copies.flatten().clamp_min(0))
        return Answers(self._sent_home(answers), handle.source_rows, handle.weights, plus)

    def _gather(self, hidden: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows [G * T, H] and ids [G * T, K] of all ranks, one after the other, in one collective."""
        width = hidden.shape[1] * hidden.itemsize
        mine = torch.cat([hidden.view(torch.uint8), ids.view(torch.uint8)], dim=1)
        everyones = self._everyones(mine)
        rows, all_ids = everyones[:, :width].contiguous(), everyones[:, width:].contiguous()
        return rows.view(hidden.dtype), all_ids.view(torch.int32)

    def _everyones(self, mine: torch.Tensor) -> torch.Tensor:
        """What all ranks bring, [T, n] uint8 each -> [G * T, n]."""
        everyones = mine.new_empty(self._num_ranks * mine.shape[0], mine.shape[1])
        self._collectives.total += 1
        _all_gather(everyones, mine, group=self._group)
        return everyones

    def _sent_home(self, answers: torch.Tensor) -> torch.Tensor:
        """The answers of all ranks for the rows of this one, [G * T * K, H]."""
        home = torch.empty_like(answers)
        self._collectives.total += 1
        # Bytes: gloo has no bf16.
        dist.all_to_all_single(home.view(torch.uint8), answers.view(torch.uint8), group=self._group)
        return home
