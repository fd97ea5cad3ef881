"""How many rows the gates of this rank sent to each logical expert."""

from __future__ import annotations

import torch


class LoadStats:
    """Running totals over all MoE layers and steps."""

    def __init__(self, num_experts: int, device: torch.device | None = None) -> None:
        self.device = device
        self.totals = torch.zeros(num_experts, dtype=torch.int64, device=device)  # rows per logical expert

    def add(self, counts: torch.Tensor) -> None:
        """Add rows per logical expert, [E] of any integer dtype."""
        self.totals += counts

    def add_choices(self, ids: torch.Tensor) -> None:
        """Add one for each logical expert chosen, ids [T, K] int32; -1 is none."""
        chosen = ids.flatten().long()
        self.totals.scatter_add_(0, chosen.clamp_min(0), (chosen >= 0).long())

    def snapshot(self) -> tuple[int, ...]:
        """Rows per logical expert so far."""
        return tuple(self.totals.tolist())
