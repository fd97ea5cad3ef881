"""RMSNorm as its formula reads."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `kernels.rms_norm.rms_norm`."""
    u = x.float()
    u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    return weight * u.to(x.dtype)


def add_rms_norm(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `kernels.rms_norm.add_rms_norm`."""
    residual += x
    return rms_norm(residual, weight, eps)
