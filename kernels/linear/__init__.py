"""Linear layers over weights laid out once for how they are read.

Bytes: N * K weights once per call at few rows, which is what bounds a decode; FLOP: 2 * T * N * K.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from kernels import native
from kernels.linear import cpu, reference


class Layout(enum.Enum):
    """How a weight lies in memory."""

    PLAIN = "plain"  # [N, K]
    PANELS = "panels"  # groups of four panels of sixteen outputs, see kernels/native/gemm.h


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A weight [N, K] ready to be read."""

    data: torch.Tensor
    num_out: int
    num_in: int
    dtype: torch.dtype
    layout: Layout


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Lay out weight [N, K], fp32 or bf16, for `linear`. The weight itself is not kept."""
    assert weight.dim() == 2, f"weight has {weight.dim()} axes, not 2"
    num_out, num_in = weight.shape
    layout, data = Layout.PLAIN, weight.contiguous()
    if native.library() is not None and weight.device.type == "cpu":
        layout, data = Layout.PANELS, cpu.pack(data)
    elif data is weight:
        data = weight.clone()
    return PackedWeight(data=data, num_out=num_out, num_in=num_in, dtype=weight.dtype, layout=layout)


def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """X [T, K] -> [T, N], both of the weight's dtype; sums in fp32, one order for every T in fp32.

    T = 0 is valid. Raises nothing; shapes are asserted.
    """
    return _linear(x, weight, weight.dtype)


def linear_fp32_out(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """As `linear`, but the sums stay fp32: for logits."""
    return _linear(x, weight, torch.float32)


def _linear(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> torch.Tensor:
    assert x.dim() == 2 and x.shape[1] == weight.num_in, f"x is {list(x.shape)}, weight takes {weight.num_in}"
    assert x.dtype == weight.dtype, f"x is {x.dtype}, weight is {weight.dtype}"
    assert x.is_contiguous(), f"x has strides {x.stride()}"
    if weight.layout is Layout.PLAIN:
        return reference.linear(x, weight.data, out_dtype)
    return cpu.linear(x, weight.data, weight.num_out, out_dtype)
