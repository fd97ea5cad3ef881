"""The scales of values that a kernel already holds, for every kernel that ends in FP8."""

from __future__ import annotations

from functools import cache

import triton
import triton.language as tl

from kernels.quantise.formats import FP8_BLOCK, FP8_MAX, SMALLEST_BLOCK_PEAK, SMALLEST_TOKEN_SCALE, Scaling


@triton.jit
def group_scales(
    values: tl.tensor, WHOLE: tl.constexpr, SMALLEST_PEAK: tl.constexpr, LARGEST: tl.constexpr
) -> tl.tensor:
    """Scales [G] of values [G, N] fp32, one a group, or WHOLE: the same for all. NaN where a value is NaN."""
    peak = tl.max(tl.where(values == values, tl.abs(values), 0.0), 1)
    is_nan = tl.max((values != values).to(tl.int32), 1)  # a maximum passes NaN over
    if WHOLE:
        peak = tl.zeros_like(peak) + tl.max(peak, 0)
        is_nan = tl.zeros_like(is_nan) + tl.max(is_nan, 0)
    # Divisions by the plain operator are approximate on a GPU and may round a value to its e4m3 neighbour.
    scales = tl.div_rn(tl.maximum(peak, SMALLEST_PEAK), tl.full(peak.shape, LARGEST, tl.float32))
    return tl.where(is_nan > 0, float("nan"), scales)


@triton.jit
def in_units(values: tl.tensor, scales: tl.tensor) -> tl.tensor:
    """Values [G, N] over their groups' scales [G], as e4m3."""
    return tl.div_rn(values, tl.broadcast_to(scales[:, None], values.shape)).to(tl.float8e4nv)


@cache
def num_scales(width: int, scaling: Scaling) -> int:
    """Scales of a row of activations; none where nothing is quantised."""
    if scaling is Scaling.NONE:
        return 0
    return 1 if scaling is Scaling.CHANNELS else triton.cdiv(width, FP8_BLOCK)


def peak_limits(scaling: Scaling) -> dict[str, float]:
    """SMALLEST_PEAK and LARGEST of `group_scales`."""
    smallest = SMALLEST_TOKEN_SCALE * FP8_MAX if scaling is Scaling.CHANNELS else SMALLEST_BLOCK_PEAK
    return {"SMALLEST_PEAK": smallest, "LARGEST": FP8_MAX}
