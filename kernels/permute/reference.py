"""Sorting and summing with plain tensor operations."""

from __future__ import annotations

import torch


def expert_order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.permute.expert_order`."""
    flat = torch.where(ids < 0, num_experts, ids).flatten().long()  # what is for nobody comes last
    order = flat.argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=ids.device)
    places = torch.where(flat < num_experts, places, -1)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=ids.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return counts[:num_experts].int(), places.int().view(ids.shape)


def gather_rows(hidden: torch.Tensor, source_rows: torch.Tensor) -> torch.Tensor:
    """See `kernels.permute.gather_rows`."""
    num_copies = source_rows.numel()
    rows = hidden.new_zeros(num_copies + 1, hidden.shape[1])  # the last is where the places of -1 point to
    rows[source_rows.flatten().long()] = hidden.repeat_interleave(source_rows.shape[1], 0)
    return rows[:num_copies]


def combine_rows(
    rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """See `kernels.permute.combine_rows`."""
    total = torch.zeros(len(source_rows), rows.shape[1], device=rows.device)
    for slot in range(source_rows.shape[1]):
        place = source_rows[:, slot, None].long()
        answers = rows[place.squeeze(1).clamp_min(0)].float()
        total += torch.where(place < 0, 0.0, weights[:, slot, None] * answers)
    return total.to(rows.dtype) if plus is None else total.to(rows.dtype) + plus
