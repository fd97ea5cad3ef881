"""The native linear layer. Callers have checked shapes and dtypes."""

from __future__ import annotations

import ctypes

import torch

from kernels.native import bind, dtype_code

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

packed_bytes = bind("sigmoe_packed_bytes", _INT64, _INT64, _INT, returns=_INT64)
_pack = bind("sigmoe_pack", _POINTER, _INT64, _INT64, _INT, _POINTER)
_linear = bind("sigmoe_linear", _POINTER, _INT64, _POINTER, _INT64, _INT64, _INT, _POINTER, _INT)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Weight [N, K] -> bytes in panels."""
    (num_out, num_in), code = weight.shape, dtype_code(weight.dtype)
    packed = torch.zeros(packed_bytes(num_out, num_in, code), dtype=torch.uint8)
    _pack(weight.data_ptr(), num_out, num_in, code, packed.data_ptr())
    return packed


def linear(x: torch.Tensor, packed: torch.Tensor, num_out: int, out_dtype: torch.dtype) -> torch.Tensor:
    """X [T, K] -> [T, num_out] of `out_dtype`."""
    num_rows = x.shape[0]
    out = torch.empty(num_rows, num_out, dtype=out_dtype)
    if num_rows:
        _linear(
            x.data_ptr(),
            num_rows,
            packed.data_ptr(),
            num_out,
            x.shape[1],
            dtype_code(x.dtype),
            out.data_ptr(),
            dtype_code(out_dtype),
        )
    return out
