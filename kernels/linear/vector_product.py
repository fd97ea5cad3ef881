"""One row times the rows of a weight without tensor cores: what the kernels of a row alone share.

A step is BLOCK_IN channels of BLOCK_OUT outputs. A warp reads a chunk of each of OUTS outputs at a time, 16 bytes a
thread. So that a thread keeps its channels of x for all outputs, the chunks of a step lie in the order
[BLOCK_OUT / OUTS, CHUNKS, OUTS] of outputs, chunks, outputs; a chunk is CHUNK channels, LANES lanes of LANE each.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weight_places(
    weight: tl.tensor,
    first_out: tl.tensor,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    OUTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Where the first step's weights of outputs from `first_out` on lie; outputs past NUM_OUT read the last."""
    read = tl.arange(0, BLOCK_OUT * CHUNKS)
    out_read = tl.minimum(first_out + read // (CHUNKS * OUTS) * OUTS + read % OUTS, NUM_OUT - 1)
    return weight + (out_read * NUM_IN + read // OUTS % CHUNKS * CHUNK)[:, None] + tl.arange(0, CHUNK)[None, :]


@triton.jit
def row_places(OUTS: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr) -> tl.tensor:
    """The channels of x that meet a group's weights in the first step, [CHUNKS * OUTS, CHUNK]."""
    return (tl.arange(0, CHUNKS * OUTS) // OUTS * CHUNK)[:, None] + tl.arange(0, CHUNK)[None, :]


@triton.jit
def add_step(sums: tl.tensor, weights: tl.tensor, values: tl.tensor, scale: tl.tensor, LANE: tl.constexpr) -> tl.tensor:
    """Sums [GROUPS, CHUNKS * OUTS, LANES] plus weights times values, each lane's scaled."""
    GROUPS: tl.constexpr = sums.shape[0]
    LINES: tl.constexpr = sums.shape[1]
    LANES: tl.constexpr = sums.shape[2]
    products = tl.reshape(weights, (GROUPS, LINES, LANES * LANE)).to(tl.float32) * values[None, :, :]
    return sums + tl.sum(tl.reshape(products, (GROUPS, LINES, LANES, LANE)), 3) * scale


@triton.jit
def by_out(sums: tl.tensor, OUTS: tl.constexpr) -> tl.tensor:
    """Sums [GROUPS, CHUNKS * OUTS, LANES] -> of each output, [GROUPS * OUTS]."""
    GROUPS: tl.constexpr = sums.shape[0]
    CHUNKS: tl.constexpr = sums.shape[1] // OUTS
    LANES: tl.constexpr = sums.shape[2]
    ordered = tl.permute(tl.reshape(sums, (GROUPS, CHUNKS, OUTS, LANES)), (0, 2, 1, 3))
    return tl.sum(tl.reshape(ordered, (GROUPS * OUTS, CHUNKS * LANES)), 1)


@triton.jit
def lane_scales(of_lines: tl.tensor, LANES: tl.constexpr) -> tl.tensor:
    """Scales of blocks of 128, [LINES, 2] of chunks of two blocks -> [1, LINES, LANES]: each lane's."""
    LINES: tl.constexpr = of_lines.shape[0]
    return tl.reshape(tl.broadcast_to(of_lines[:, :, None], (LINES, 2, LANES // 2)), (1, LINES, LANES))


@triton.jit
def block_scales(at: tl.tensor, start: tl.constexpr, OUTS: tl.constexpr, CHUNKS: tl.constexpr) -> tl.tensor:
    """The scales of a step's blocks of 128 channels, [CHUNKS * OUTS, 2], from a row of them."""
    block = start // 128 + tl.arange(0, CHUNKS * OUTS) // OUTS * 2
    return tl.load(at + block[:, None] + tl.arange(0, 2)[None, :])
