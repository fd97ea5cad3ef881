"""RMSNorm on a GPU, one program a row: alone, after the residual sum, after the experts' sum and this, and on to FP8.

Bytes, bf16: T * H * 4 (x read, y written), T * H * 8 with the residual sum (two read, two written), T * H * (8 + 2 * K)
with K answers of experts; FP8 output writes T * H * 1 and the scales instead of T * H * 2.
FLOP: about 4 * T * H, 9 * T * H with FP8 output, 2 * K * T * H for the experts' sum.
H = 4096, 64 rows, residual and FP8: 1.8 MB, 0.46 us at 4.0 TB/s (H20 datasheet); at one row a launch is all.
A row's sums run in one order whatever the batch.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options, loads_first
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.permute import Answers
from kernels.permute.triton_kernel import weighted_sum
from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.quantise.groups import group_scales, in_units, num_scales, peak_limits

MAX_ANSWERED_ROWS = 256  # that one kernel sums and normalises: two turns, as a program has a multiprocessor to itself


@triton.jit
def _store_norm(
    value: tl.tensor,
    gain: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    plain: tl.tensor,
    eps: tl.tensor,
    here: tl.tensor,
    exists: tl.tensor,
    WIDTH: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    KEEP: tl.constexpr,
    SMALLEST_PEAK: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    """Write the norm of the program's row, of values that are 0 where none exists."""
    row = tl.program_id(0).to(tl.int64)
    wide = value.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(tl.sum(wide * wide, 1), 0) / WIDTH + eps)
    # The model's definition rounds before the product with the weight, and once more after it.
    normed = (gain.to(tl.float32) * (wide * rstd).to(value.dtype).to(tl.float32)).to(value.dtype)
    if NUM_SCALES:
        exact = tl.where(exists, normed.to(tl.float32), 0.0)
        scale = group_scales(exact, NUM_SCALES == 1, SMALLEST_PEAK, LARGEST)
        group = tl.arange(0, value.shape[0])
        tl.store(scales + row * NUM_SCALES + group, scale, mask=group < NUM_SCALES)
        tl.store(out + here, in_units(exact, scale), mask=exists)
        if KEEP:
            tl.store(plain + here, normed, mask=exists)
    else:
        tl.store(out + here, normed, mask=exists)


@launched
@triton.jit
def rms_norm_kernel(
    residual: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    plain: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    GROUPS_POW2: tl.constexpr,
    GROUP: tl.constexpr,
    ADD: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    KEEP: tl.constexpr,
    SMALLEST_PEAK: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    """One row of x [T, WIDTH], as GROUPS_POW2 groups of GROUP channels, the last of them perhaps short or empty.

    ADD: of residual + x, which stays in residual. With NUM_SCALES out is e4m3, and scales are [T, NUM_SCALES]: one for
    the row, or one a group; KEEP: `plain` gets the norm itself.
    """
    await_previous()
    column = tl.arange(0, GROUPS_POW2)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    exists = column < WIDTH
    here = tl.program_id(0).to(tl.int64) * WIDTH + column
    gain = tl.load(weight + column, mask=exists, other=0.0)
    tl.debug_barrier()  # or ptxas puts that load, which no cache holds in a decode, behind the arrival of the others
    value = tl.load(x + here, mask=exists, other=0.0)
    if ADD:
        stream = tl.load(residual + here, mask=exists, other=0.0)
        value = (stream.to(tl.float32) + value.to(tl.float32)).to(stream.dtype)
        tl.store(residual + here, value, mask=exists)
    _store_norm(value, gain, out, scales, plain, eps, here, exists, WIDTH, NUM_SCALES, KEEP, SMALLEST_PEAK, LARGEST)


@launched
@triton.jit
def answers_norm_kernel(
    residual: tl.tensor,
    answers: tl.tensor,
    source_rows: tl.tensor,
    shares: tl.tensor,
    plus: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    PLUS: tl.constexpr,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS_POW2: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    SMALLEST_PEAK: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    """One row: `rms_norm_kernel` after ADD of what `combine_kernel` makes of the answers, rounded where they round."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, GROUPS_POW2)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    exists = column < WIDTH
    here = row * WIDTH + column
    gain = tl.load(weight + column, mask=exists, other=0.0)
    stream = tl.load(residual + here, mask=exists, other=0.0)
    if PLUS:
        more = tl.load(plus + here, mask=exists, other=0.0)
    tl.debug_barrier()  # see `rms_norm_kernel`
    value = weighted_sum(answers, source_rows, shares, row, column, TOP_K, WIDTH).to(stream.dtype)
    if PLUS:
        value = (value.to(tl.float32) + more.to(tl.float32)).to(stream.dtype)
    value = (stream.to(tl.float32) + value.to(tl.float32)).to(stream.dtype)
    tl.store(residual + here, value, mask=exists)
    _store_norm(value, gain, out, scales, out, eps, here, exists, WIDTH, NUM_SCALES, False, SMALLEST_PEAK, LARGEST)


def rms_norm(
    x: torch.Tensor | Answers, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """Normalise x [T, H], or the residual [T, H] after adding x into it in place."""
    out = torch.empty(x.shape, dtype=weight.dtype, device=weight.device)
    _launch((residual, x, weight), eps, (out, None, None), Scaling.NONE)
    return out


def rms_norm_quantised(
    x: torch.Tensor | Answers,
    weight: torch.Tensor,
    eps: float,
    scaling: Scaling,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rms_norm`, and on to e4m3: values [T, H] and scales as `scaling` lays them out."""
    out, scales = _room(x.shape, scaling, weight.device)
    _launch((residual, x, weight), eps, (out, scales, None), scaling)
    return out, scales


def rms_norm_both(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `kernels.rms_norm.rms_norm_both`."""
    out, scales = _room(x.shape, scaling, x.device)
    plain = torch.empty_like(x)
    _launch((residual, x, weight), eps, (out, scales, plain), scaling)
    return plain, out, scales


def _room(
    shape: tuple[int, int] | torch.Size, scaling: Scaling, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """For values and scales."""
    rows, width = shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=device)
    return out, torch.empty(rows, num_scales(width, scaling), dtype=torch.float32, device=device)


@cache
def constants(width: int, scaling: Scaling, *, add: bool, keep: bool = False) -> dict[str, int | float | bool]:
    """What `rms_norm_kernel` is compiled with."""
    return {
        "WIDTH": width,
        "GROUPS_POW2": triton.next_power_of_2(triton.cdiv(width, FP8_BLOCK)),
        "GROUP": FP8_BLOCK,
        "ADD": add,
        "NUM_SCALES": num_scales(width, scaling),
        "KEEP": keep,
        **peak_limits(scaling),
    }


@cache
def answers_constants(width: int, top_k: int, scaling: Scaling, *, has_plus: bool) -> dict[str, int | float | bool]:
    """What `answers_norm_kernel` is compiled with."""
    summed = constants(width, scaling, add=True)
    shared = {name: value for name, value in summed.items() if name not in ("ADD", "KEEP")}
    return {"PLUS": has_plus, "TOP_K": top_k, **shared}


@cache
def options(width: int) -> dict[str, int | bool]:
    """How a row is launched: sixteen bytes of bf16 a lane at least, sixteen warps at most."""
    return launch_options(min(16, max(1, triton.next_power_of_2(width) // 256)))


def _launch(
    inputs: tuple[torch.Tensor | None, torch.Tensor | Answers, torch.Tensor],
    eps: float,
    outputs: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    scaling: Scaling,
) -> None:
    residual, x, weight = inputs
    out, scales, plain = outputs
    rows, width = x.shape
    if rows > MAX_ANSWERED_ROWS and isinstance(x, Answers):
        x = x.combined()
    if rows and isinstance(x, Answers):
        assert x.weights.is_contiguous() and x.source_rows.is_contiguous(), f"weights have strides {x.weights.stride()}"
        answers_norm_kernel[(rows,)](
            *(residual, x.rows, x.source_rows, x.weights, x.rows if x.plus is None else x.plus, weight),
            *(out, out if scales is None else scales, eps),
            **answers_constants(width, x.source_rows.shape[1], scaling, has_plus=x.plus is not None),
            **loads_first(options(width)),
        )
    elif rows:
        rms_norm_kernel[(rows,)](
            *(x if residual is None else residual, x, weight, out),
            *(out if scales is None else scales, out if plain is None else plain, eps),
            **constants(width, scaling, add=residual is not None, keep=plain is not None),
            **options(width),
        )
