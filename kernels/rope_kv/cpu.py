"""The native QK-norm, rotation and cache write. Callers have checked shapes and dtypes."""

from __future__ import annotations

import ctypes

import torch

from kernels.native import bind, dtype_code
from kernels.paged_attention import KVLayer

_INT64 = ctypes.c_int64


class _Shape(ctypes.Structure):
    """`rope_shape` of rope_kv.c."""

    _fields_ = (
        *((name, _INT64) for name in ("rows", "heads", "kv_heads", "dim", "rotary", "block_size")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("dtype", "is_fp8")),
    )


_qk_norm_rope_kv = bind("sigmoe_qk_norm_rope_kv", ctypes.POINTER(_Shape), *[ctypes.c_void_p] * 11)


def qk_norm_rope_kv(
    qkv: torch.Tensor,
    query_weight: torch.Tensor | None,
    key_weight: torch.Tensor | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    kv: KVLayer,
    eps: float,
) -> torch.Tensor:
    """See `kernels.rope_kv.qk_norm_rope_kv`."""
    num_rows, head_dim, num_kv_heads = qkv.shape[0], kv.head_dim, kv.num_kv_heads
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    query = torch.empty(num_rows, num_heads, head_dim, dtype=qkv.dtype)
    shape = _Shape(
        *(num_rows, num_heads, num_kv_heads, head_dim, cos_sin.shape[1], kv.block_size),
        *(eps, dtype_code(qkv.dtype), kv.key_scale is not None),
    )
    _qk_norm_rope_kv(
        shape,
        *(
            qkv.data_ptr(),
            *(None if w is None else w.data_ptr() for w in (query_weight, key_weight)),
            cos_sin.data_ptr(),
        ),
        *(positions.data_ptr(), slots.data_ptr(), kv.key.data_ptr(), kv.value.data_ptr()),
        *(None if s is None else s.data_ptr() for s in (kv.key_scale, kv.value_scale)),
        query.data_ptr(),
    )
    return query
