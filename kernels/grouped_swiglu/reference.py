"""The experts one after the other."""

from __future__ import annotations

import torch


def grouped_swiglu(
    rows: torch.Tensor, counts: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Rows [R, H] sorted by expert; gate, up [E, I, H], down [E, H, I] -> [R, H]; products rounded once."""
    out = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        mine = rows[start : start + count].float()
        gated = torch.nn.functional.silu(mine @ gate[expert].float().T) * (mine @ up[expert].float().T)
        out[start : start + count] = (gated.to(rows.dtype).float() @ down[expert].float().T).to(rows.dtype)
        start += count
    return out
