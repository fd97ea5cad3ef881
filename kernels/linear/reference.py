"""The plain matrix product."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """X [T, K] times weight [N, K] transposed, accumulated in fp32, rounded once to `out_dtype`."""
    return (x.float() @ weight.float().T).to(out_dtype)
