"""The experts one after the other."""

from __future__ import annotations

import torch

from kernels.linear.reference import linear_fp8
from kernels.quantise.formats import Scaling


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


def grouped_swiglu_fp8(
    rows: torch.Tensor,
    counts: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Rows [R, H] sorted by expert; gate_up [E, 2, I, H], down [E, H, I] e4m3 and their scales -> [R, H].

    Block-wise the products of gate and up are quantised as they are; per channel they are rounded to the rows' dtype
    first, since a row's scale needs all of them.
    """
    out = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        mine = rows[start : start + count]
        gate, up = (
            linear_fp8(mine, gate_up[expert, part], scales[0][expert, part], torch.float32) for part in range(2)
        )
        gated = torch.nn.functional.silu(gate) * up
        if Scaling.of(down[expert], scales[1][expert]) is Scaling.CHANNELS:
            gated = gated.to(rows.dtype)
        out[start : start + count] = linear_fp8(gated, down[expert], scales[1][expert], rows.dtype)
        start += count
    return out
