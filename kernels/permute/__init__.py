"""Rows into the order of their experts, and the experts' answers back.

Bytes: T * K * H read and written each way; FLOP: 2 * T * K * H for the weighted sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from kernels import native
from kernels.permute import cpu, reference


def expert_order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each copy of a row lies when all are sorted by expert, rows and slots in order within one expert.

    ids [T, K] int32, each in [0, num_experts), or -1: a copy for nobody, which is not counted and gets the place -1.
    Returns counts [E] int32 and source_rows [T, K] int32. T = 0 is valid.
    """
    assert ids.dtype == torch.int32 and ids.is_contiguous(), f"ids are {ids.dtype}, strides {ids.stride()}"
    return _kernels(ids).expert_order(ids, num_experts)


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The order of the experts, for a kernel that reads rows from where they lie: nothing is copied into it."""

    sources: torch.Tensor  # [R] int32: the row that comes r-th; behind those that are counted anything
    tiles: torch.Tensor  # [N, 3] int32 of `tile_rows` rows each, see `kernels.permute.tile_map`
    tile_rows: int  # 0: no tiles were made


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedCopies:
    """A copy of each row [T, H] for each of its experts, in their order."""

    rows: torch.Tensor  # [T * K, H]; with `order` the rows themselves
    counts: torch.Tensor  # [E] int32
    places: torch.Tensor  # [T, K] int32, as `expert_order` has them
    order: RowOrder | None


def sort_by_expert(
    hidden: torch.Tensor, ids: torch.Tensor, num_experts: int, totals: torch.Tensor | None = None
) -> SortedCopies:
    """`expert_order` of ids [T, K] and `gather_rows` of hidden [T, H], or on a GPU the order alone.

    `totals` [E] int64 grow by the counts.
    """
    assert ids.dtype == torch.int32 and ids.is_contiguous(), f"ids are {ids.dtype}, strides {ids.stride()}"
    if native.runs_triton(hidden):
        from kernels.permute import triton_kernel  # Triton is imported where it runs

        counts, places, order = triton_kernel.row_order(ids, num_experts, totals)
        return SortedCopies(rows=hidden, counts=counts, places=places, order=order)
    counts, places = expert_order(ids, num_experts)
    if totals is not None:
        totals += counts
    return SortedCopies(rows=gather_rows(hidden, places, ids.numel()), counts=counts, places=places, order=None)


def gather_rows(hidden: torch.Tensor, source_rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Copy row t of hidden [T, H] to each row source_rows[t, k] of the result [num_rows, H]; num_rows = T * K.

    A place of -1 takes no copy; as many rows at the end of the result then hold anything.
    """
    assert source_rows.numel() == num_rows, f"{source_rows.numel()} copies into {num_rows} rows"
    assert hidden.is_contiguous(), f"hidden has strides {hidden.stride()}"
    return _kernels(hidden).gather_rows(hidden, source_rows)


def combine_rows(
    rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over k of weights[t, k] * rows[source_rows[t, k]], in fp32, in the order of k, rounded once; then + `plus`.

    rows [R, H]; source_rows [T, K] int32, where -1 adds nothing; weights [T, K] fp32; plus [T, H], whose sum with the
    rounded first is rounded again. Returns [T, H] of the rows' dtype. T = 0 is valid.
    """
    assert rows.dim() == 2 and rows.is_contiguous(), f"rows are {list(rows.shape)}, strides {rows.stride()}"
    assert weights.dtype == torch.float32 and weights.shape == source_rows.shape, f"weights are {weights.dtype}"
    assert plus is None or (plus.is_contiguous() and plus.dtype == rows.dtype), f"plus is {plus.dtype}"
    return _kernels(rows).combine_rows(rows, source_rows, weights.contiguous(), plus)


@dataclass(frozen=True, slots=True)
class Answers:
    """What `combine_rows` sums, for a norm that adds the sums to its residual stream and may make them on the way."""

    rows: torch.Tensor  # [R, H]
    source_rows: torch.Tensor  # [T, K] int32
    weights: torch.Tensor  # [T, K] fp32
    plus: torch.Tensor | None = None  # [T, H]

    @property
    def shape(self) -> tuple[int, int]:
        """T, H."""
        return self.source_rows.shape[0], self.rows.shape[1]

    def combined(self) -> torch.Tensor:
        """The sums [T, H]."""
        return combine_rows(self.rows, self.source_rows, self.weights, self.plus)


class _Kernels(Protocol):
    """What each implementation offers."""

    def expert_order(self, ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]: ...

    def gather_rows(self, hidden: torch.Tensor, source_rows: torch.Tensor) -> torch.Tensor: ...

    def combine_rows(
        self, rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor, plus: torch.Tensor | None
    ) -> torch.Tensor: ...


def _kernels(tensor: torch.Tensor) -> _Kernels:
    """The implementation for a tensor."""
    if native.runs_triton(tensor):
        from kernels.permute import triton_kernel  # Triton is imported where it runs

        return triton_kernel
    return cpu if tensor.device.type == "cpu" and native.library() is not None else reference
