"""RMSNorm as its formula reads."""

from __future__ import annotations

import torch

from kernels.quantise import reference as quantise
from kernels.quantise.formats import Scaling


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `kernels.rms_norm.rms_norm`."""
    u = x.float()
    u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    return weight * u.to(x.dtype)


def add_rms_norm(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `kernels.rms_norm.add_rms_norm`."""
    residual += x
    return rms_norm(residual, weight, eps)


def rms_norm_quantised(
    x: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.rms_norm.rms_norm_quantised`."""
    normed = rms_norm(x, weight, eps) if residual is None else add_rms_norm(residual, x, weight, eps)
    return _quantised(normed, scaling)


def rms_norm_both(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `kernels.rms_norm.rms_norm_both`."""
    normed = add_rms_norm(residual, x, weight, eps)
    return normed, *_quantised(normed, scaling)


def _quantised(normed: torch.Tensor, scaling: Scaling) -> tuple[torch.Tensor, torch.Tensor]:
    return quantise.quantise_blocks(normed) if scaling is Scaling.BLOCKS else quantise.quantise_tokens(normed)
