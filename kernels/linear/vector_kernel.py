"""One row through a linear layer: each program reads whole rows of the weight, and no tensor core is waited for.

Bytes: N * K weights of one or two bytes (5120 x 4096 in FP8: 21 MB, 4.8 us at 4.35 TB/s). FLOP: 2 * N * K, in fp32:
with what unpacks them 3.5 instructions a weight of FP8, 2.6 us of a device of 132 multiprocessors. Weights come to
the L2 cache while the kernel before this one still runs.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.linear.product import prefetch
from kernels.linear.tiles import TARGET_PROGRAMS
from kernels.overlap import await_previous
from kernels.quantise.formats import Scaling

BLOCK_OUT = 16
NUM_WARPS = 8
STEP_BYTES = 4096  # of each output's weights: eight warps each read four lines of four outputs four times
MIN_STEP_BYTES = 1024  # a line a warp
OPTIONS = launch_options(NUM_WARPS)


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

    A warp reads lines of 128 bytes, 16 a thread, of four outputs at a time; axes are outputs / 4, lines of a step,
    4 outputs, threads of a line, channels of a thread.
    """
    LANE: tl.constexpr = 128 // weight.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = BLOCK_IN // (8 * LANE)
    first_out = tl.program_id(0) * BLOCK_OUT
    prefetch(weight, first_out, 0, NUM_OUT, NUM_IN, 1, BLOCK_OUT, PIECES)
    await_previous()
    of_four = tl.arange(0, 4)[:, None] + tl.arange(0, BLOCK_OUT // 4)[None, :] * 4
    outs = tl.minimum(first_out + of_four, NUM_OUT - 1)
    line = tl.arange(0, LINES)[None, None, :, None, None]
    lane = tl.arange(0, 8)[:, None, None, None, None]
    k = (line * 8 + lane) * LANE + tl.arange(0, LANE)[None, None, None, None, :]
    weight_at = weight + outs[None, :, None, :, None] * NUM_IN + k
    x_at = x + tl.broadcast_to(k, (8, 4, LINES, 1, LANE))  # each thread the channels of its weights
    sums = tl.zeros((8, 4, LINES, BLOCK_OUT // 4), tl.float32)
    for start in tl.static_range(0, NUM_IN, BLOCK_IN):
        weights = tl.load(weight_at + start)
        values = tl.load(x_at + start).to(tl.float32)
        line_sums = tl.sum(weights.to(tl.float32) * values, 4)
        if SCALING == "blocks":  # a line is a block
            block = start // 128 + tl.arange(0, LINES)[None, None, :, None]
            block_scale = tl.load(weight_scale + first_out // 128 * (NUM_IN // 128) + block)
            sums += line_sums * (tl.load(x_scale + block) * block_scale)
        else:
            sums += line_sums
    result = tl.sum(tl.sum(sums, 0), 1)
    if SCALING == "channels":
        result *= tl.load(x_scale) * tl.load(weight_scale + outs)
    tl.store(out + first_out + of_four, result.to(out.dtype.element_ty), mask=first_out + of_four < NUM_OUT)


def takes(num_rows: int, num_out: int, num_in: int, itemsize: int) -> bool:
    """Whether a product is this kernel's. Many outputs fill the device from tiles, with fewer instructions a weight."""
    few_outs = num_out < 128 * TARGET_PROGRAMS
    return num_rows == 1 and few_outs and itemsize < 4 and num_in * itemsize % MIN_STEP_BYTES == 0


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
    vector_kernel[(triton.cdiv(len(weight), BLOCK_OUT),)](
        *(*operands, out), **constants(*weight.shape, scaling, weight.itemsize), **OPTIONS
    )
