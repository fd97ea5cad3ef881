"""The native permutation. Callers have checked shapes and dtypes."""

from __future__ import annotations

import ctypes

import torch

from kernels.native import bind, dtype_code

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

_expert_order = bind("sigmoe_expert_order", _POINTER, _INT64, _INT64, _POINTER, _POINTER)
_gather_rows = bind("sigmoe_gather_rows", _POINTER, _POINTER, _INT64, _INT64, _INT64, _POINTER)
_combine_rows = bind("sigmoe_combine_rows", _POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT64, _INT, _POINTER)


def expert_order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.permute.expert_order`."""
    counts, places = torch.empty(num_experts, dtype=torch.int32), torch.empty_like(ids)
    _expert_order(ids.data_ptr(), ids.numel(), num_experts, counts.data_ptr(), places.data_ptr())
    return counts, places


def gather_rows(hidden: torch.Tensor, source_rows: torch.Tensor) -> torch.Tensor:
    """See `kernels.permute.gather_rows`."""
    num_rows, top_k = source_rows.shape
    rows = torch.empty(num_rows * top_k, hidden.shape[1], dtype=hidden.dtype)
    row_bytes = hidden.shape[1] * hidden.itemsize
    _gather_rows(hidden.data_ptr(), source_rows.data_ptr(), num_rows, top_k, row_bytes, rows.data_ptr())
    return rows


def combine_rows(
    rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """See `kernels.permute.combine_rows`."""
    num_rows, top_k = source_rows.shape
    out = torch.empty(num_rows, rows.shape[1], dtype=rows.dtype)
    _combine_rows(
        *(rows.data_ptr(), source_rows.data_ptr(), weights.data_ptr(), num_rows, top_k),
        *(rows.shape[1], dtype_code(rows.dtype), out.data_ptr()),
    )
    return out if plus is None else out.add_(plus)
