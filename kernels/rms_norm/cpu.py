"""The native RMSNorm. Callers have checked shapes and dtypes."""

from __future__ import annotations

import ctypes

import torch

from kernels.native import bind, dtype_code

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

_rms_norm = bind("sigmoe_rms_norm", _POINTER, _POINTER, _POINTER, ctypes.c_float, _INT64, _INT64, _INT, _POINTER)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """Normalise x, or the residual after adding x into it."""
    out = torch.empty_like(x)
    stream = None if residual is None else residual.data_ptr()
    rows, width = x.shape
    _rms_norm(stream, x.data_ptr(), weight.data_ptr(), eps, rows, width, dtype_code(x.dtype), out.data_ptr())
    return out
