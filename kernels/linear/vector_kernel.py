"""One row through a linear layer: each program reads whole rows of the weight, and no tensor core is waited for.

Bytes: N * K weights of one or two bytes (5120 x 4096 in FP8: 21 MB, 4.8 us at 4.35 TB/s). FLOP: 2 * N * K, in fp32:
with what unpacks them 3.9 instructions a weight of FP8, 2.7 us of 132 multiprocessors at 1.75 GHz. The first weights
are asked for while the kernel before this one still runs.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.linear.tiles import TARGET_PROGRAMS
from kernels.linear.vector_product import add_step, block_scales, by_out, lane_scales, row_places, weight_places
from kernels.overlap import await_previous
from kernels.quantise.formats import Scaling

BLOCK_OUT = (
    8  # 640 programs for 5120 outputs, 512 for 4096: of 132 multiprocessors none has over 3% more than its share
)
NUM_WARPS = 4
OUTS = 2  # of which a warp reads 256 bytes each at once: a thread unpacks x for four outputs, and few lanes are summed
STEP_BYTES = 1024  # of each output's weights: 256 a warp
EARLY_STEPS = 2  # whose weights are on their way before x is there: 6.9 us with a norm on an H200, 9.0 by way of L2
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
    EARLY: tl.constexpr,
) -> None:
    """BLOCK_OUT outputs of out [NUM_OUT] = x [NUM_IN] times weight [NUM_OUT, NUM_IN] transposed.

    The weights of the first EARLY steps are asked for before the wait: nobody writes them while a model runs.
    """
    LANES: tl.constexpr = 32 // OUTS
    LANE: tl.constexpr = 128 // weight.dtype.element_ty.primitive_bitwidth
    CHUNK: tl.constexpr = LANES * LANE
    CHUNKS: tl.constexpr = BLOCK_IN // CHUNK
    tl.static_assert(SCALING != "blocks" or CHUNK == 256, "a chunk is two blocks")
    first_out = tl.program_id(0) * BLOCK_OUT
    weight_at = weight_places(weight, first_out, NUM_OUT, NUM_IN, BLOCK_OUT, OUTS, CHUNKS, CHUNK)
    early = tl.tuple(())
    for step in tl.static_range(EARLY):
        early += (tl.load(weight_at + step * BLOCK_IN),)
    await_previous()
    x_at = x + row_places(OUTS, CHUNKS, CHUNK)
    weight_scale_at = weight_scale + first_out // 128 * (NUM_IN // 128)
    outs = first_out + tl.arange(0, BLOCK_OUT)
    out_scale = 1.0
    if SCALING == "channels":
        out_scale = tl.load(x_scale) * tl.load(weight_scale + tl.minimum(outs, NUM_OUT - 1))
    sums = tl.zeros((BLOCK_OUT // OUTS, CHUNKS * OUTS, LANES), tl.float32)
    for step in tl.static_range(NUM_IN // BLOCK_IN):
        scale = 1.0
        if SCALING == "blocks":  # what comes last is asked for first
            of_x = block_scales(x_scale, step * BLOCK_IN, OUTS, CHUNKS)
            scale = lane_scales(of_x * block_scales(weight_scale_at, step * BLOCK_IN, OUTS, CHUNKS), LANES)
        weights = early[step] if step < EARLY else tl.load(weight_at + step * BLOCK_IN)
        values = tl.load(x_at + step * BLOCK_IN).to(tl.float32)
        sums = add_step(sums, weights, values, scale, LANE)
    result = by_out(sums, OUTS) * out_scale
    tl.store(out + outs, result.to(out.dtype.element_ty), mask=outs < NUM_OUT)


def takes(num_rows: int, num_out: int, num_in: int, itemsize: int) -> bool:
    """Whether a product is this kernel's. Many outputs fill the device from tiles, with fewer instructions a weight."""
    few_outs = num_out < 128 * TARGET_PROGRAMS
    return num_rows == 1 and few_outs and itemsize < 4 and num_in * itemsize % STEP_BYTES == 0


@cache
def constants(num_out: int, num_in: int, scaling: Scaling, itemsize: int) -> dict[str, int | str | bool]:
    """The constants that `vector_kernel` is compiled with."""
    num_steps = num_in * itemsize // STEP_BYTES
    return {
        **{"NUM_OUT": num_out, "NUM_IN": num_in, "SCALING": scaling.value, "EARLY": min(EARLY_STEPS, num_steps)},
        **{"BLOCK_OUT": BLOCK_OUT, "OUTS": OUTS, "BLOCK_IN": STEP_BYTES // itemsize},
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
