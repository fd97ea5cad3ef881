"""RMSNorm on a GPU, one program a row: alone, after the residual sum, and straight to FP8.

Bytes, bf16: T * H * 4 (norm: x read, y written), T * H * 8 (with the residual sum: both read, both written); with FP8
output T * H * 3 or 7, and T * H / 32 of scales. FLOP: about 4 * T * H. At H = 4096 and one row 16 KB: a launch.
A row's sums run in one order whatever the batch.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

QUANT_BLOCK = 128  # channels that share a scale
FP8_MAX = 448.0  # largest finite e4m3


@triton.jit
def rms_norm_kernel(
    residual: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    WIDTH_POW2: tl.constexpr,
    ADD: tl.constexpr,
    QUANTISE: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
) -> None:
    """One row of x [T, WIDTH].

    ADD: of residual + x, which is kept in residual; QUANTISE: out is e4m3 and scales [T, WIDTH / BLOCK] are written.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH_POW2)
    exists = column < WIDTH
    here = row * WIDTH + column
    value = tl.load(x + here, mask=exists, other=0.0)
    if ADD:
        stream = tl.load(residual + here, mask=exists, other=0.0)
        value = (stream.to(tl.float32) + value.to(tl.float32)).to(stream.dtype)
        tl.store(residual + here, value, mask=exists)
    wide = value.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    gain = tl.load(weight + column, mask=exists, other=0.0)
    # The model's definition rounds before the product with the weight, and once more after it.
    normed = (gain.to(tl.float32) * (wide * rstd).to(value.dtype).to(tl.float32)).to(value.dtype)
    if QUANTISE:
        NUM_BLOCKS: tl.constexpr = WIDTH_POW2 // BLOCK
        blocks = tl.reshape(normed.to(tl.float32), (NUM_BLOCKS, BLOCK))
        peak = tl.max(tl.abs(blocks), 1)
        scale = tl.where(peak > 0, peak / LARGEST, 1.0)
        quantised = tl.reshape((blocks / scale[:, None]).to(out.dtype.element_ty), (WIDTH_POW2,))
        tl.store(out + here, quantised, mask=exists)
        block = tl.arange(0, NUM_BLOCKS)
        tl.store(scales + row * (WIDTH // BLOCK) + block, scale, mask=block < WIDTH // BLOCK)
    else:
        tl.store(out + here, normed, mask=exists)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """Normalise x [T, H], or the residual [T, H] after adding x into it in place."""
    out = torch.empty_like(x)
    _launch(residual, x, weight, eps, (out, None))
    return out


def rms_norm_quantised(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rms_norm`, rounded on to e4m3: values [T, H] and scales [T, H / 128] fp32, so that y is values * scales.

    A scale is the largest magnitude of its 128 channels over 448, or 1 where all are zero. H is a multiple of 128.
    """
    rows, width = x.shape
    assert width % QUANT_BLOCK == 0, f"{width} channels, a multiple of {QUANT_BLOCK} is needed"
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, width // QUANT_BLOCK, dtype=torch.float32, device=x.device)
    _launch(residual, x, weight, eps, (out, scales))
    return out, scales


def constants(width: int, add: bool, quantise: bool) -> dict[str, int | float | bool]:
    """The constants that `rms_norm_kernel` is compiled with."""
    return {
        "WIDTH": width,
        "WIDTH_POW2": triton.next_power_of_2(width),
        "ADD": add,
        "QUANTISE": quantise,
        "BLOCK": QUANT_BLOCK,
        "LARGEST": FP8_MAX,
    }


def num_warps(width: int) -> int:
    """Warps of a row: sixteen bytes of bf16 a lane at least, eight warps at most."""
    return min(8, max(1, (1 << (width - 1).bit_length()) // 256))


def _launch(
    residual: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    outputs: tuple[torch.Tensor, torch.Tensor | None],
) -> None:
    rows, width = x.shape
    out, scales = outputs
    if rows:
        rms_norm_kernel[(rows,)](
            *(x if residual is None else residual, x, weight, out, out if scales is None else scales, eps),
            **constants(width, residual is not None, scales is not None),
            num_warps=num_warps(width),
        )
