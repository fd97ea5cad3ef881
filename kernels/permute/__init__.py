"""Rows into the order of their experts, and the experts' answers back.

Bytes: T * K * H read and written each way; FLOP: 2 * T * K * H for the weighted sum.
"""

from __future__ import annotations

import torch

from kernels import native
from kernels.permute import cpu, reference


def expert_order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each copy of a row lies when all are sorted by expert, rows and slots in order within one expert.

    ids [T, K] int32, each in [0, num_experts). Returns counts [E] int32 and source_rows [T, K] int32. T = 0 is valid.
    """
    assert ids.dtype == torch.int32 and ids.is_contiguous(), f"ids are {ids.dtype}, strides {ids.stride()}"
    order = cpu.expert_order if _is_native(ids) else reference.expert_order
    return order(ids, num_experts)


def gather_rows(hidden: torch.Tensor, source_rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Copy row t of hidden [T, H] to each row source_rows[t, k] of the result [num_rows, H]; num_rows = T * K."""
    assert source_rows.numel() == num_rows, f"{source_rows.numel()} copies into {num_rows} rows"
    assert hidden.is_contiguous(), f"hidden has strides {hidden.stride()}"
    gather = cpu.gather_rows if _is_native(hidden) else reference.gather_rows
    return gather(hidden, source_rows)


def combine_rows(rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over k of weights[t, k] * rows[source_rows[t, k]], in fp32, in the order of k, rounded once.

    rows [R, H]; source_rows [T, K] int32; weights [T, K] fp32. Returns [T, H] of the rows' dtype. T = 0 is valid.
    """
    assert rows.dim() == 2 and rows.is_contiguous(), f"rows are {list(rows.shape)}, strides {rows.stride()}"
    assert weights.dtype == torch.float32 and weights.shape == source_rows.shape, f"weights are {weights.dtype}"
    combine = cpu.combine_rows if _is_native(rows) else reference.combine_rows
    return combine(rows, source_rows, weights.contiguous())


def _is_native(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and native.library() is not None
