"""Sorting and summing with plain tensor operations."""

from __future__ import annotations

import torch


def expert_order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.permute.expert_order`."""
    flat = ids.flatten().long()
    order = flat.argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=ids.device)
    return torch.bincount(flat, minlength=num_experts).int(), places.int().view(ids.shape)


def gather_rows(hidden: torch.Tensor, source_rows: torch.Tensor) -> torch.Tensor:
    """See `kernels.permute.gather_rows`."""
    rows = hidden.new_empty(source_rows.numel(), hidden.shape[1])
    rows[source_rows.flatten().long()] = hidden.repeat_interleave(source_rows.shape[1], 0)
    return rows


def combine_rows(rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """See `kernels.permute.combine_rows`."""
    total = torch.zeros(len(source_rows), rows.shape[1], device=rows.device)
    for slot in range(source_rows.shape[1]):
        total += weights[:, slot, None] * rows[source_rows[:, slot].long()].float()
    return total.to(rows.dtype)
