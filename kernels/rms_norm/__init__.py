"""RMSNorm over the last axis, alone or after adding into the residual stream, and on to FP8 where a product follows.

Bytes: two or three reads and one or two writes of T * H; FLOP: about 4 * T * H.
"""

from __future__ import annotations

import torch

from kernels import native
from kernels.permute import Answers
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


def add_rms_norm(residual: torch.Tensor, x: torch.Tensor | Answers, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x [T, H] into `residual` [T, H] in place, rounded to the dtype, and return its `rms_norm`.

    Of answers x is what `combine_rows` makes of them.
    """
    _check_residual(residual, x, weight)
    if native.runs_triton(residual):
        from kernels.rms_norm import triton_kernel

        return triton_kernel.rms_norm(x, weight, eps, residual)
    x = _combined(x)
    if x.device.type != "cpu" or native.library() is None:
        return reference.add_rms_norm(residual, x, weight, eps)
    return cpu.rms_norm(x, weight, eps, residual)


def rms_norm_quantised(
    x: torch.Tensor | Answers,
    weight: torch.Tensor,
    eps: float,
    scaling: Scaling,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm` of x, or `add_rms_norm` of `residual` and x, for a product with FP8 weights.

    Returns values [T, H] e4m3 and scales fp32: [T, H / 128 rounded up] for Scaling.BLOCKS, [T, 1] for CHANNELS; what
    `kernels.quantise` makes of the norm rounded to the dtype. T = 0 is valid. Source: model-spec §2.2, §4.
    """
    assert scaling is not Scaling.NONE, "without scales there is rms_norm"
    if residual is not None:
        _check_residual(residual, x, weight)
    else:
        assert isinstance(x, torch.Tensor), "answers are added to a residual stream"
        _check(x, weight)
    if native.runs_triton(weight):
        from kernels.rms_norm import triton_kernel

        return triton_kernel.rms_norm_quantised(x, weight, eps, scaling, residual)
    return reference.rms_norm_quantised(_combined(x), weight, eps, scaling, residual)


def rms_norm_both(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`add_rms_norm` and `rms_norm_quantised` at once: the norm [T, H], its e4m3 values [T, H] and their scales."""
    assert scaling is not Scaling.NONE, "without scales there is add_rms_norm"
    _check_residual(residual, x, weight)
    if native.runs_triton(x):
        from kernels.rms_norm import triton_kernel

        return triton_kernel.rms_norm_both(residual, x, weight, eps, scaling)
    return reference.rms_norm_both(residual, x, weight, eps, scaling)


def _combined(x: torch.Tensor | Answers) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else x.combined()


def _check_residual(residual: torch.Tensor, x: torch.Tensor | Answers, weight: torch.Tensor) -> None:
    _check(x if isinstance(x, torch.Tensor) else x.rows, weight)
    assert residual.shape == x.shape, f"residual is {list(residual.shape)}, x {list(x.shape)}"
    assert residual.dtype == weight.dtype and residual.is_contiguous(), (
        f"residual is {residual.dtype}, x {weight.dtype}"
    )


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    assert x.dim() == 2 and weight.shape == x.shape[1:], f"x is {list(x.shape)}, weight {list(weight.shape)}"
    assert x.dtype == weight.dtype, f"x is {x.dtype}, weight {weight.dtype}"
    assert x.is_contiguous() and weight.is_contiguous(), f"x has strides {x.stride()}"
