"""Linear layers over weights laid out once for how they are read.

Bytes: N * K weights once per call at few rows, which is what bounds a decode; FLOP: 2 * T * N * K.
Panels are for the native kernels of the CPU. Triton reads weights as they are stored, FP8 ones with their scales.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from kernels import native
from kernels.linear import cpu, reference
from kernels.quantise.formats import Scaling


class Layout(enum.Enum):
    """How a weight lies in memory."""

    PLAIN = "plain"  # [N, K]
    FP8 = "fp8"  # [N, K] e4m3, and its scales
    PANELS = "panels"  # groups of four panels of sixteen outputs, see kernels/native/gemm.h


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A weight [N, K] ready to be read."""

    data: torch.Tensor  # begins at a multiple of 16 bytes, which kernels ask for at once
    num_out: int
    num_in: int
    dtype: torch.dtype  # of the rows that it multiplies
    layout: Layout
    scale: torch.Tensor | None = None  # fp32, of Layout.FP8
    arrivals: torch.Tensor  # int32 [N / 64], of Triton, zeros between products: two streams may not multiply at once


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Rows [T, K] that are quantised already, in the format of the weight that they are for."""

    values: torch.Tensor  # [T, K] e4m3
    scales: torch.Tensor  # fp32, see `kernels.quantise`


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Lay out weight [N, K], fp32 or bf16, for `linear`. The weight itself is not kept."""
    assert weight.dim() == 2, f"weight has {weight.dim()} axes, not 2"
    num_out, num_in = weight.shape
    layout, data = Layout.PLAIN, weight.contiguous()
    if native.library() is not None and weight.device.type == "cpu":
        layout, data = Layout.PANELS, cpu.pack(data)
    elif data is weight:
        data = weight.clone()
    arrivals = _arrivals(num_out, weight.device)
    return PackedWeight(data=data, num_out=num_out, num_in=num_in, dtype=weight.dtype, layout=layout, arrivals=arrivals)


def reads_fp8(device: torch.device) -> bool:
    """Whether the kernels of a device multiply FP8 weights as they are; others want them dequantised."""
    return native.runs_triton(torch.empty(0, device=device))


def pack_fp8_weight(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> PackedWeight:
    """Keep a weight [N, K] e4m3 with its scales, block-wise or per channel, for rows of `dtype`."""
    assert weight.dim() == 2 and weight.dtype == torch.float8_e4m3fn, f"weight is {weight.dtype}, not FP8"
    Scaling.of(weight, scale)
    num_out, num_in = weight.shape
    data, scale, arrivals = weight.contiguous(), scale.float().contiguous(), _arrivals(num_out, weight.device)
    if data.data_ptr() % 16:  # a part of another tensor; what is allocated begins so
        data = data.clone()
    return PackedWeight(
        data=data, num_out=num_out, num_in=num_in, dtype=dtype, layout=Layout.FP8, scale=scale, arrivals=arrivals
    )


def _arrivals(num_out: int, device: torch.device) -> torch.Tensor:
    num_tiles = -(-num_out // 64) if reads_fp8(device) else 0  # nobody else counts
    return torch.zeros(num_tiles, dtype=torch.int32, device=device)


def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """X [T, K] -> [T, N], both of the weight's dtype; sums in fp32, on the CPU in fp32 one order for every T.

    Rows that meet an FP8 weight are quantised as its format says (model-spec §4). T = 0 is valid. Raises nothing;
    shapes are asserted.
    """
    return _linear(x, weight, weight.dtype)


def linear_of_fp8(rows: Fp8Rows, weight: PackedWeight) -> torch.Tensor:
    """As `linear` of the rows that these were made from, for a weight of Layout.FP8: [T, N] of the weight's dtype."""
    assert weight.scale is not None, f"FP8 rows for a weight of {weight.dtype}"
    assert rows.values.shape[1] == weight.num_in, f"rows are {list(rows.values.shape)}, weight takes {weight.num_in}"
    if native.runs_triton(rows.values):
        from kernels.linear import triton_kernel

        operands = (rows.values, rows.scales, weight.data, weight.scale)
        return triton_kernel.linear_fp8(*operands, weight.arrivals, weight.dtype)
    return reference.linear_of_fp8(rows.values, rows.scales, weight.data, weight.scale, weight.dtype)


def linear_fp32_out(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """As `linear`, but the sums stay fp32: for logits."""
    return _linear(x, weight, torch.float32)


def _linear(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> torch.Tensor:
    assert x.dim() == 2 and x.shape[1] == weight.num_in, f"x is {list(x.shape)}, weight takes {weight.num_in}"
    assert x.dtype == weight.dtype, f"x is {x.dtype}, weight is {weight.dtype}"
    assert x.is_contiguous(), f"x has strides {x.stride()}"
    if weight.layout is Layout.PANELS:
        return cpu.linear(x, weight.data, weight.num_out, out_dtype)
    if native.runs_triton(x):
        from kernels.linear import triton_kernel  # Triton is imported where it runs

        return triton_kernel.linear(x, weight.data, weight.scale, weight.arrivals, out_dtype)
    if weight.scale is None:
        return reference.linear(x, weight.data, out_dtype)
    return reference.linear_fp8(x, weight.data, weight.scale, out_dtype)
