"""The native attention. Callers have checked shapes and dtypes."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from kernels.native import bind, dtype_code

if TYPE_CHECKING:
    from kernels.paged_attention import KVLayer

_INT64 = ctypes.c_int64


class _Shape(ctypes.Structure):
    """`attention_shape` of attention.c."""

    _fields_ = (
        *((name, _INT64) for name in ("sequences", "heads", "kv_heads", "dim", "block_size", "table_width")),
        ("window", _INT64),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("dtype", "is_fp8")),
    )


_paged_attention = bind("sigmoe_paged_attention", ctypes.POINTER(_Shape), *[ctypes.c_void_p] * 10)


def paged_attention(
    query: torch.Tensor,
    kv: KVLayer,
    block_tables: torch.Tensor,
    row_starts: torch.Tensor,
    context_lens: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """See `kernels.paged_attention.paged_attention`."""
    num_rows, num_heads, head_dim = query.shape
    out = torch.empty(num_rows, num_heads * head_dim, dtype=query.dtype)
    shape = _Shape(
        *(context_lens.shape[0], num_heads, kv.num_kv_heads, head_dim, kv.block_size, block_tables.shape[1]),
        *(window, scale, dtype_code(query.dtype), kv.key_scale is not None),
    )
    _paged_attention(
        shape,
        *(query.data_ptr(), kv.key.data_ptr(), kv.value.data_ptr()),
        *(None if s is None else s.data_ptr() for s in (kv.key_scale, kv.value_scale)),
        *(
            block_tables.data_ptr(),
            row_starts.data_ptr(),
            context_lens.data_ptr(),
            positions.data_ptr(),
            out.data_ptr(),
        ),
    )
    return out
