"""Triton's interpreter, made to round as a GPU does.

As it comes (3.6 to 3.9) it truncates fp32 to bf16, loses the carry where e4m3 rounds up to the next power of two, wraps
e4m3 overflow around, and multiplies the bit patterns of bf16 matrices. The replacements are torch's conversions, which
round to nearest even and saturate e4m3, as the instruction `cvt.rn.satfinite` does. `test_interpreter.py` checks them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from triton.runtime import interpreter

Array = npt.NDArray[Any]

_TORCH = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def repair() -> None:
    """Replace what rounds wrongly; again does no harm."""
    interpreter._convert_float = _convert
    interpreter.InterpreterBuilder.create_dot = _dot


def _tensor(data: Array, kind: Any) -> torch.Tensor:
    """The values that numpy holds as numbers or, where it has no such type, as bits."""
    dtype = _TORCH[kind.name]
    contiguous = np.ascontiguousarray(data)
    bits = torch.from_numpy(contiguous.view(f"i{dtype.itemsize}" if dtype.itemsize > 1 else "u1"))
    return bits.view(dtype).reshape(data.shape)


def _convert(data: Array, source: Any, target: Any, rounding: Any) -> Array:
    """Values of one float type to the bits of another, round to nearest even, e4m3 saturated."""
    out = _tensor(data, source).to(_TORCH[target.name])
    bits: Array = out.view(_INTEGERS[out.itemsize]).numpy().view(f"u{out.itemsize}")
    return bits


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """Products in fp32 of whatever comes, summed and added in the accumulator's type.

    A row at a time: one product of matrices sums in an order that depends on the row's place in it on some CPUs, which
    no matrix unit of a GPU does.
    """
    left, right = (_tensor(x.data, x.dtype.scalar).float().numpy() if x.dtype.is_floating() else x.data for x in (a, b))
    sums = np.matmul(left[..., None, :], right[..., None, :, :], dtype=d.data.dtype)[..., 0, :]
    return interpreter.TensorHandle(sums + d.data, d.dtype.scalar)
