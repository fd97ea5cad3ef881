"""The native experts. Callers have checked shapes and dtypes."""

from __future__ import annotations

import ctypes

import torch

from kernels.linear.cpu import packed_bytes
from kernels.native import bind, dtype_code

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

_gate_up_bytes = bind("sigmoe_gate_up_bytes", _INT64, _INT64, _INT, returns=_INT64)
_pack_gate_up = bind("sigmoe_pack_gate_up", _POINTER, _POINTER, _INT64, _INT64, _INT, _POINTER)
_pack = bind("sigmoe_pack", _POINTER, _INT64, _INT64, _INT, _POINTER)
_grouped_swiglu = bind(
    "sigmoe_grouped_swiglu",
    *(_POINTER, _POINTER, _INT64, _INT64, _INT64),
    *(_POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT64),
)


def allocate(num_experts: int, hidden: int, inner: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for gate and up [E, bytes], and for down [E, bytes]; padding is zero."""
    code = dtype_code(dtype)
    gate_up = torch.zeros(num_experts, _gate_up_bytes(inner, hidden, code), dtype=torch.uint8)
    down = torch.zeros(num_experts, packed_bytes(hidden, inner, code), dtype=torch.uint8)
    return gate_up, down


def fill(
    gate_up: torch.Tensor, down: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down_weight: torch.Tensor
) -> None:
    """Write one expert: gate, up [I, H], down_weight [H, I] into its two rows of bytes."""
    (inner, hidden), code = gate.shape, dtype_code(gate.dtype)
    _pack_gate_up(gate.data_ptr(), up.data_ptr(), inner, hidden, code, gate_up.data_ptr())
    _pack(down_weight.data_ptr(), hidden, inner, code, down.data_ptr())


def grouped_swiglu(
    rows: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, inner: int
) -> torch.Tensor:
    """Rows [R, H] sorted by expert -> [R, H]."""
    num_rows, hidden = rows.shape
    out = torch.empty_like(rows)
    if num_rows:
        # An odd width is padded with a zero column, so that pairs of bf16 inputs can be read.
        new = torch.zeros if inner % 2 else torch.empty
        scratch = new(num_rows, inner + inner % 2, dtype=rows.dtype)
        _grouped_swiglu(
            *(rows.data_ptr(), counts.data_ptr(), counts.shape[0], hidden, inner),
            *(gate_up.data_ptr(), down.data_ptr(), dtype_code(rows.dtype), scratch.data_ptr(), out.data_ptr()),
            num_rows,
        )
    return out
