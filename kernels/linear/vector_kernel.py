"""One row through a linear layer: each program reads whole rows of the weight, and no tensor core is waited for.

Bytes: N * K weights of one or two bytes (5120 x 4096 in FP8: 21 MB, 4.8 us at 4.35 TB/s). FLOP: 2 * N * K, in fp32:
with what unpacks them 3.9 instructions a weight of FP8, 2.7 us of 132 multiprocessors at 1.75 GHz. Weights come to
the L2 cache while the kernel before this one still runs.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.linear.product import prefetch_span
from kernels.linear.tiles import TARGET_PROGRAMS
from kernels.overlap import await_previous
from kernels.quantise.formats import Scaling

BLOCK_OUT = (
    8  # 640 programs for 5120 outputs, 512 for 4096: of 132 multiprocessors none has over 3% more than its share
)
NUM_WARPS = 4
OUTS = 2  # of which a warp reads 256 bytes each at once: a thread unpacks x for four outputs, and few lanes are summed
STEP_BYTES = 1024  # of each output's weights: 256 a warp
PIECES = 16  # in which a program's weights are brought to the L2 cache: two kilobytes each where K is 4096
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
    OUTS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """BLOCK_OUT outputs of out [NUM_OUT] = x [NUM_IN] times weight [NUM_OUT, NUM_IN] transposed.

    A warp reads a chunk of each of OUTS outputs at a time, 16 bytes a thread. So that a thread keeps its channels of x
    for all outputs, the chunks of a step lie in the order [BLOCK_OUT / OUTS, CHUNKS, OUTS] of outputs, chunks, outputs.
    """
    ITEM_BITS: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth
    LANES: tl.constexpr = 32 // OUTS
    LANE: tl.constexpr = 128 // ITEM_BITS
    CHUNK: tl.constexpr = LANES * LANE
    CHUNKS: tl.constexpr = BLOCK_IN // CHUNK
    GROUPS: tl.constexpr = BLOCK_OUT // OUTS
    tl.static_assert(SCALING != "blocks" or CHUNK == 256, "a chunk is two blocks")
    first_out = tl.program_id(0) * BLOCK_OUT
    piece_out = first_out + tl.arange(0, 8 * PIECES) * BLOCK_OUT // (8 * PIECES)
    prefetch_span(weight + first_out * NUM_IN, piece_out < NUM_OUT, BLOCK_OUT * NUM_IN * ITEM_BITS // 8, PIECES)
    await_previous()
    read = tl.arange(0, GROUPS * CHUNKS * OUTS)
    out_read = tl.minimum(first_out + read // (CHUNKS * OUTS) * OUTS + read % OUTS, NUM_OUT - 1)
    k = tl.arange(0, CHUNK)
    weight_at = weight + (out_read * NUM_IN + read // OUTS % CHUNKS * CHUNK)[:, None] + k[None, :]
    first_in = tl.arange(0, CHUNKS * OUTS) // OUTS * CHUNK
    x_at = x + first_in[:, None] + k[None, :]
    weight_scale_at = weight_scale + first_out // 128 * (NUM_IN // 128)
    is_lower = (tl.arange(0, LANES) < LANES // 2)[None, None, :]
    outs = first_out + tl.arange(0, BLOCK_OUT)
    out_scale = 1.0
    if SCALING == "channels":
        out_scale = tl.load(x_scale) * tl.load(weight_scale + tl.minimum(outs, NUM_OUT - 1))
    sums = tl.zeros((GROUPS, CHUNKS * OUTS, LANES), tl.float32)
    for start in tl.static_range(0, NUM_IN, BLOCK_IN):
        scale = 1.0
        if SCALING == "blocks":  # what comes last is asked for first
            block = (start + first_in) // 128
            lower = tl.load(x_scale + block) * tl.load(weight_scale_at + block)
            upper = tl.load(x_scale + block + 1) * tl.load(weight_scale_at + block + 1)
            scale = tl.where(is_lower, lower[None, :, None], upper[None, :, None])
        weights = tl.reshape(tl.load(weight_at + start), (GROUPS, CHUNKS * OUTS, CHUNK)).to(tl.float32)
        values = tl.load(x_at + start).to(tl.float32)
        sums += tl.sum(tl.reshape(weights * values[None, :, :], (GROUPS, CHUNKS * OUTS, LANES, LANE)), 3) * scale
    by_out = tl.permute(tl.reshape(sums, (GROUPS, CHUNKS, OUTS, LANES)), (0, 2, 1, 3))
    result = tl.sum(tl.reshape(by_out, (BLOCK_OUT, CHUNKS * LANES)), 1) * out_scale
    tl.store(out + outs, result.to(out.dtype.element_ty), mask=outs < NUM_OUT)


def takes(num_rows: int, num_out: int, num_in: int, itemsize: int) -> bool:
    """Whether a product is this kernel's. Many outputs fill the device from tiles, with fewer instructions a weight."""
    few_outs = num_out < 128 * TARGET_PROGRAMS
    return num_rows == 1 and few_outs and itemsize < 4 and num_in * itemsize % STEP_BYTES == 0


@cache
def constants(num_out: int, num_in: int, scaling: Scaling, itemsize: int) -> dict[str, int | str | bool]:
    """The constants that `vector_kernel` is compiled with."""
    return {
        **{"NUM_OUT": num_out, "NUM_IN": num_in, "SCALING": scaling.value},
        **{"BLOCK_OUT": BLOCK_OUT, "OUTS": OUTS, "BLOCK_IN": STEP_BYTES // itemsize, "PIECES": PIECES},
    }


def launch(
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], out: torch.Tensor, scaling: Scaling
) -> None:
    """Fill out [1, N], fp32 or bf16; operands as the kernel's first four."""
    weight = operands[2]
    num_out, num_in = weight.shape
    vector_kernel[(-(-num_out // BLOCK_OUT),)](
        *(*operands, out), **constants(num_out, num_in, scaling, weight.itemsize), **OPTIONS
    )
