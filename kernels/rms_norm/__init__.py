"""RMSNorm over the last axis, alone or after adding into the residual stream, and on to FP8 where a product follows.

Bytes: two or three reads and one or two writes of T * H; FLOP: about 4 * T * H.
"""

from __future__ import annotations

import torch

from kernels import native
from kernels.quantise.formats import Scaling
from kernels.rms_norm import cpu, reference


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Weight * cast(x * rsqrt(mean(x^2) + eps)): x [T, H], weight [H] of one dtype -> [T, H].

    Statistics in fp32; the product with the weight comes after the cast. T = 0 is valid. Source: model-spec §2.2.
    """
    _check(x, weight)
    if native.runs_triton(x):
        from kernels.rms_norm import triton_kernel  # Triton is imported where it runs

        return triton_kernel.rms_norm(x, weight, eps)
    if x.device.type != "cpu" or native.library() is None:
        return reference.rms_norm(x, weight, eps)
    return cpu.rms_norm(x, weight, eps)


def add_rms_norm(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x [T, H] into `residual` [T, H] in place, rounded to the dtype, and return its `rms_norm`."""
    _check(x, weight)
    _check_residual(residual, x)
    if native.runs_triton(x):
        from kernels.rms_norm import triton_kernel

        return triton_kernel.rms_norm(x, weight, eps, residual)
    if x.device.type != "cpu" or native.library() is None:
        return reference.add_rms_norm(residual, x, weight, eps)
    return cpu.rms_norm(x, weight, eps, residual)


def rms_norm_quantised(
    x: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm` of x, or `add_rms_norm` of `residual` and x, for a product with FP8 weights.

    Returns values [T, H] e4m3 and scales fp32: [T, H / 128 rounded up] for Scaling.BLOCKS, [T, 1] for CHANNELS; what
    `kernels.quantise` makes of the norm rounded to the dtype. T = 0 is valid. Source: model-spec §2.2, §4.
    """
    _check(x, weight)
    assert scaling is not Scaling.NONE, "without scales there is rms_norm"
    if residual is not None:
        _check_residual(residual, x)
    if native.runs_triton(x):
        from kernels.rms_norm import triton_kernel

        return triton_kernel.rms_norm_quantised(x, weight, eps, scaling, residual)
    return reference.rms_norm_quantised(x, weight, eps, scaling, residual)


def rms_norm_both(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`add_rms_norm` and `rms_norm_quantised` at once: the norm [T, H], its e4m3 values [T, H] and their scales."""
    _check(x, weight)
    assert scaling is not Scaling.NONE, "without scales there is add_rms_norm"
    _check_residual(residual, x)
    if native.runs_triton(x):
        from kernels.rms_norm import triton_kernel

        return triton_kernel.rms_norm_both(residual, x, weight, eps, scaling)
    return reference.rms_norm_both(residual, x, weight, eps, scaling)


def _check_residual(residual: torch.Tensor, x: torch.Tensor) -> None:
    assert residual.shape == x.shape, f"residual is {list(residual.shape)}, x {list(x.shape)}"
    assert residual.dtype == x.dtype and residual.is_contiguous(), f"residual is {residual.dtype}, x {x.dtype}"


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert x.dim() == 2 and weight.shape == x.shape[1:], f"x is {list(x.shape)}, weight {list(weight.shape)}"
    assert x.dtype == weight.dtype, f"x is {x.dtype}, weight {weight.dtype}"
    assert x.is_contiguous() and weight.is_contiguous(), f"x has strides {x.stride()}"
