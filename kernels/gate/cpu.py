"""The native choice of experts. Callers have checked shapes and dtypes."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from kernels.native import bind

if TYPE_CHECKING:
    from kernels.gate import GateShape

_INT64 = ctypes.c_int64


class _Shape(ctypes.Structure):
    """`gate_shape` of gate.c."""

    _fields_ = (
        *((name, _INT64) for name in ("rows", "experts", "groups", "kept_groups", "k")),
        ("scale", ctypes.c_float),
        ("normalise", ctypes.c_int),
    )


_group_topk = bind("sigmoe_group_topk", ctypes.POINTER(_Shape), *[ctypes.c_void_p] * 4)


def choose(logits: torch.Tensor, bias: torch.Tensor, shape: GateShape) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [T, E] fp32 -> ids [T, K] int32, weights [T, K] fp32."""
    num_rows, num_experts = logits.shape
    ids = torch.empty(num_rows, shape.top_k, dtype=torch.int32)
    weights = torch.empty(num_rows, shape.top_k, dtype=torch.float32)
    native_shape = _Shape(
        *(num_rows, num_experts, shape.num_expert_groups, shape.topk_groups, shape.top_k),
        *(shape.scale, shape.normalise),
    )
    _group_topk(native_shape, logits.data_ptr(), bias.data_ptr(), ids.data_ptr(), weights.data_ptr())
    return ids, weights
