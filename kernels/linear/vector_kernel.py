"""One row through a linear layer: each program reads whole rows of the weight, and no tensor core is waited for.

Bytes: N * K weights of one or two bytes (5120 x 4096 in FP8: 21 MB, 4.8 us at 4.35 TB/s). FLOP: 2 * N * K, in fp32:
with what unpacks them 4.2 instructions a weight of FP8, 3 us of 132 multiprocessors at 1.75 GHz. Weights come to
the L2 cache while the kernel before this one still runs.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.linear.product import prefetch
from kernels.linear.tiles import TARGET_PROGRAMS
from kernels.overlap import await_previous
from kernels.quantise.formats import Scaling

BLOCK_OUT = 16
NUM_WARPS = 8
STEP_BYTES = 4096  # of each output's weights: eight warps each read four lines of four outputs four times
MIN_STEP_BYTES = 1024  # a line a warp
OPTIONS = launch_options(NUM_WARPS)


@launched
@triton.jit
def vector_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    out: tl.tensor,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    SCALING: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """BLOCK_OUT outputs of out [NUM_OUT] = x [NUM_IN] times weight [NUM_OUT, NUM_IN] transposed.

    A warp reads lines of 128 bytes, 16 a thread, of four outputs at a time. So that a thread keeps its channels of x
    for all outputs, the lines of a step lie in the order [BLOCK_OUT / 4, LINES, 4] of outputs, lines, outputs.
    """
    LANE: tl.constexpr = 128 // weight.dtype.element_ty.primitive_bitwidth
    LINE: tl.constexpr = 8 * LANE
    LINES: tl.constexpr = BLOCK_IN // LINE
    FOURS: tl.constexpr = BLOCK_OUT // 4
    first_out = tl.program_id(0) * BLOCK_OUT
    prefetch(weight, first_out, 0, NUM_OUT, NUM_IN, 1, BLOCK_OUT, PIECES)
    await_previous()
    read = tl.arange(0, FOURS * LINES * 4)
    out_read = tl.minimum(first_out + read // (LINES * 4) * 4 + read % 4, NUM_OUT - 1)
    k = tl.arange(0, LINE)
    weight_at = weight + (out_read * NUM_IN + read // 4 % LINES * LINE)[:, None] + k[None, :]
    line = tl.arange(0, LINES * 4) // 4
    x_at = x + (line * LINE)[:, None] + k[None, :]
    sums = tl.zeros((FOURS, LINES * 4, 8), tl.float32)
    for start in tl.static_range(0, NUM_IN, BLOCK_IN):
        scale = 1.0
        if SCALING == "blocks":  # a line is a block; what comes last is asked for first
            block = start // 128 + line
            block_scale = tl.load(weight_scale + first_out // 128 * (NUM_IN // 128) + block)
            scale = (tl.load(x_scale + block) * block_scale)[None, :, None]
        weights = tl.reshape(tl.load(weight_at + start), (FOURS, LINES * 4, LINE)).to(tl.float32)
        values = tl.load(x_at + start).to(tl.float32)
        sums += tl.sum(tl.reshape(weights * values[None, :, :], (FOURS, LINES * 4, 8, LANE)), 3) * scale
    result = tl.sum(tl.sum(tl.reshape(sums, (FOURS, LINES, 4, 8)), 3), 1)
    outs = first_out + tl.arange(0, FOURS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    if SCALING == "channels":
        result *= tl.load(x_scale) * tl.load(weight_scale + tl.minimum(outs, NUM_OUT - 1))
    tl.store(out + outs, result.to(out.dtype.element_ty), mask=outs < NUM_OUT)


def takes(num_rows: int, num_out: int, num_in: int, itemsize: int) -> bool:
    """Whether a product is this kernel's. Many outputs fill the device from tiles, with fewer instructions a weight."""
    few_outs = num_out < 128 * TARGET_PROGRAMS
    return num_rows == 1 and few_outs and itemsize < 4 and num_in * itemsize % MIN_STEP_BYTES == 0


@cache
def constants(num_out: int, num_in: int, scaling: Scaling, itemsize: int) -> dict[str, int | str | bool]:
    """The constants that `vector_kernel` is compiled with."""
    step_bytes = math.gcd(num_in * itemsize, STEP_BYTES)
    return {
        **{"NUM_OUT": num_out, "NUM_IN": num_in, "SCALING": scaling.value},
        **{"BLOCK_OUT": BLOCK_OUT, "BLOCK_IN": step_bytes // itemsize, "PIECES": NUM_WARPS * 32 // BLOCK_OUT},
    }


def launch(
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], out: torch.Tensor, scaling: Scaling
) -> None:
    """Fill out [1, N], fp32 or bf16; operands as the kernel's first four."""
    weight = operands[2]
    assert weight.data_ptr() % 16 == 0, "a weight must begin at a multiple of 16 bytes"
    num_out, num_in = weight.shape
    vector_kernel[(-(-num_out // BLOCK_OUT),)](
        *(*operands, out), **constants(num_out, num_in, scaling, weight.itemsize), **OPTIONS
    )
