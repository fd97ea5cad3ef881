"""The seam between attention, which is data parallel, and the experts, which are sharded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.permute import Answers, RowOrder, SortedCopies
from router.load_stats import LoadStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertChoice:
    """The experts of each row. T = 0 is valid."""

    ids: torch.Tensor  # [T, K] int32, logical expert ids; -1: none, whose weight does not count
    weights: torch.Tensor  # [T, K] fp32, routed scaling included
    is_padded: bool = False  # every rank of the group brings equally many rows, as far as needed padding
    copies: SortedCopies | None = None  # of the rows, where the gate sorted and counted them by `ids`


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchHandle:
    """The state of one round trip: made by `dispatch`, used up by `combine`."""

    counts: torch.Tensor  # [local physical experts] int32, rows that each local expert received
    weights: torch.Tensor  # [T, K] fp32
    source_rows: torch.Tensor  # [T, K] int32: where among the experts' outputs the answer for (t, k) will lie
    order: RowOrder | None = None  # of the copies of the returned rows; None: the rows lie sorted by expert
    send_splits: tuple[int, ...] = ()  # rows per destination rank; empty without a group
    recv_splits: tuple[int, ...] = ()  # rows per source rank
    sorted_rows: torch.Tensor | None = None  # [R, 1] int32: row as it arrived -> its place sorted by expert
    copies: torch.Tensor | None = None  # [G * T, K] int32: place sorted by expert of each copy; -1: another rank's


class Dispatcher(Protocol):
    """Carries rows to the ranks that hold their experts and brings the answers home."""

    local_load: LoadStats | None  # where all experts are here: a gate may sort what it chooses, and count it in this

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        """Send hidden [T, H] to its experts; returns a handle and the rows [R, H] received here, sorted by expert.

        Where the handle has an `order`, what is returned are rows that are sorted by it when they are read.
        """
        ...

    def combine(self, rows: torch.Tensor, handle: DispatchHandle, plus: torch.Tensor | None = None) -> Answers:
        """Bring expert outputs [R, H] home, for the fp32 weighted sums [T, H] over K in slot order, + `plus`."""
        ...
