"""RMSNorm over the last axis, alone or after adding into the residual stream.

Bytes: two or three reads and one or two writes of T * H; FLOP: about 4 * T * H.
"""

from __future__ import annotations

import torch

from kernels import native
from kernels.rms_norm import cpu, reference


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Weight * cast(x * rsqrt(mean(x^2) + eps)): x [T, H], weight [H] of one dtype -> [T, H].

    Statistics in fp32; the product with the weight comes after the cast. T = 0 is valid. Source: model-spec §2.2.
    """
    _check(x, weight)
    if x.device.type != "cpu" or native.library() is None:
        return reference.rms_norm(x, weight, eps)
    return cpu.rms_norm(x, weight, eps)


def add_rms_norm(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x [T, H] into `residual` [T, H] in place, rounded to the dtype, and return its `rms_norm`."""
    _check(x, weight)
    assert residual.shape == x.shape, f"residual is {list(residual.shape)}, x {list(x.shape)}"
    assert residual.dtype == x.dtype and residual.is_contiguous(), f"residual is {residual.dtype}, x {x.dtype}"
    if x.device.type != "cpu" or native.library() is None:
        return reference.add_rms_norm(residual, x, weight, eps)
    return cpu.rms_norm(x, weight, eps, residual)


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert x.dim() == 2 and weight.shape == x.shape[1:], f"x is {list(x.shape)}, weight {list(weight.shape)}"
    assert x.dtype == weight.dtype, f"x is {x.dtype}, weight {weight.dtype}"
    assert x.is_contiguous() and weight.is_contiguous(), f"x has strides {x.stride()}"
