"""The native draw. Callers have checked shapes and dtypes and clamped the settings."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from kernels.native import bind

if TYPE_CHECKING:
    from kernels.sample import DrawSettings


class _Job(ctypes.Structure):
    """`draw_job` of sample.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "temperature", "min_p", "top_p", "top_k", "points")),
        *((name, ctypes.c_int64) for name in ("rows", "vocab")),
        ("ids", ctypes.c_void_p),
    )


_draw = bind("sigmoe_draw_tokens", ctypes.POINTER(_Job))


def draw_tokens(logits: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """Logits [R, V] fp32 -> ids [R] int64."""
    num_rows, vocab_size = logits.shape
    ids = torch.empty(num_rows, dtype=torch.int64)
    job = _Job(
        *(logits.data_ptr(), settings.temperature.data_ptr(), settings.min_p.data_ptr(), settings.top_p.data_ptr()),
        *(settings.top_k.data_ptr(), settings.points.data_ptr(), num_rows, vocab_size, ids.data_ptr()),
    )
    _draw(job)
    return ids
