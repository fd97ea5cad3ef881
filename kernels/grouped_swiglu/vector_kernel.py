"""The experts of one token in block-wise FP8, without tensor cores: a program reads whole rows of an expert's weights.

With a row an expert the tiles of `triton_kernel` are few, and each is as slow as one multiprocessor reads: 28 us on an
H200 for the 67 MB of gate and up of eight experts, which memory brings in 16.

Bytes: 3 * H * I of each of K experts (AntAngelMed, K = 8: 101 MB, 23.4 us at 4.3 TB/s), 1/128 of that of scales twice
over. FLOP: 6 * K * H * I in fp32; with what unpacks them 3.9 instructions a weight, 13 us of 132 multiprocessors.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.arrivals import is_last
from kernels.grouped_swiglu import MOST_COUNTED_ROWS
from kernels.grouped_swiglu.activation import swiglu
from kernels.launch import launch_options
from kernels.launched import launched
from kernels.linear.vector_product import add_step, block_scales, by_out, lane_scales, row_places, weight_places
from kernels.overlap import await_previous
from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.quantise.groups import group_scales, in_units, peak_limits

PAIRS = 8  # outputs of gate, and of up, of a program
DOWN_OUTS = 32  # outputs of down of a program: its K is short
OUTS = 2  # of which a warp reads 256 bytes each at once
STEP = 1024  # channels of each output's weights at once
GATE_UP_OPTIONS = launch_options(num_warps=4)
DOWN_OPTIONS = launch_options(num_warps=4)


@triton.jit
def _expert(tiles: tl.tensor, slot: tl.tensor, ONE_EXPERT: tl.constexpr) -> tl.tensor:
    """Whose the row of a slot is, -1 where it is nobody's; from the L2 cache: it may have been written a moment ago."""
    if ONE_EXPERT:
        return tl.full((), 0, tl.int64)
    else:
        return tl.load(tiles + 3 * slot, cache_modifier=".cg").to(tl.int64)


@launched
@triton.jit
def gate_up_vector_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    sums: tl.tensor,
    inner: tl.tensor,
    inner_scale: tl.tensor,
    arrivals: tl.tensor,
    tiles: tl.tensor,
    ONE_EXPERT: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    SMALLEST_PEAK: tl.constexpr,
    LARGEST: tl.constexpr,
    PAIRS: tl.constexpr,
    OUTS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """PAIRS channels of one row of silu(gate x) * up x, fp32 in sums [R, INNER]; weight [E, 2, INNER, HIDDEN].

    x [HIDDEN] e4m3 with x_scale [HIDDEN / 128] is the token whose copies the R experts of `tiles` have. The program of
    a row's 128 channels that arrives last rounds them to e4m3: inner [R, INNER] and inner_scale [R, INNER / 128].
    arrivals [R * INNER / 128] int32 counts the programs that are done; it is zero before and after.
    """
    LANE: tl.constexpr = 16
    LANES: tl.constexpr = 32 // OUTS
    CHUNK: tl.constexpr = LANES * LANE
    CHUNKS: tl.constexpr = BLOCK_IN // CHUNK
    PROGRAMS: tl.constexpr = INNER // PAIRS
    SCALES: tl.constexpr = HIDDEN // 128
    UP_SCALES: tl.constexpr = INNER // 128 * SCALES
    await_previous()
    slot, first_out = tl.program_id(0) // PROGRAMS, tl.program_id(0) % PROGRAMS * PAIRS
    expert = _expert(tiles, slot, ONE_EXPERT)
    if expert < 0:
        return
    gate_at = weight_places(
        weight + expert * (2 * INNER * HIDDEN), first_out, INNER, HIDDEN, PAIRS, OUTS, CHUNKS, CHUNK
    )
    x_at = x + row_places(OUTS, CHUNKS, CHUNK)
    scale_at = weight_scale + expert * (2 * UP_SCALES) + first_out // 128 * SCALES
    gate = tl.zeros((PAIRS // OUTS, CHUNKS * OUTS, LANES), tl.float32)
    up = gate
    for start in tl.static_range(0, HIDDEN, BLOCK_IN):
        gate_weights, up_weights = tl.load(gate_at + start), tl.load(gate_at + INNER * HIDDEN + start)
        of_x = block_scales(x_scale, start, OUTS, CHUNKS)
        gate_scale = lane_scales(of_x * block_scales(scale_at, start, OUTS, CHUNKS), LANES)
        up_scale = lane_scales(of_x * block_scales(scale_at + UP_SCALES, start, OUTS, CHUNKS), LANES)
        values = tl.load(x_at + start).to(tl.float32)
        gate = add_step(gate, gate_weights, values, gate_scale, LANE)
        up = add_step(up, up_weights, values, up_scale, LANE)
    product = swiglu(by_out(gate, OUTS), by_out(up, OUTS))
    tl.store(sums + slot * INNER + first_out + tl.arange(0, PAIRS), product)
    group = slot * (INNER // 128) + first_out // 128
    if is_last(arrivals + group, 128 // PAIRS):
        own = group * 128 + tl.arange(0, 128)
        whole = tl.reshape(tl.load(sums + own, cache_modifier=".cg"), (1, 128))
        own_scale = group_scales(whole, False, SMALLEST_PEAK, LARGEST)
        tl.store(inner + own, tl.reshape(in_units(whole, own_scale), (128,)))
        tl.store(inner_scale + group + tl.arange(0, 1), own_scale)
        tl.store(arrivals + group, 0)


@launched
@triton.jit
def down_vector_kernel(
    inner: tl.tensor,
    inner_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    ONE_EXPERT: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    OUTS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> None:
    """BLOCK_OUT channels of one row of out [R, HIDDEN] = down inner [R, INNER]; weight [E, HIDDEN, INNER].

    The first step's weights are asked for before the wait. Whose row it is may be read there: the kernel before this
    one is `gate_up_vector_kernel`, which lets this one begin when all of its own programs have waited for the tiles.
    """
    LANE: tl.constexpr = 16
    LANES: tl.constexpr = 32 // OUTS
    CHUNK: tl.constexpr = LANES * LANE
    CHUNKS: tl.constexpr = BLOCK_IN // CHUNK
    PROGRAMS: tl.constexpr = HIDDEN // BLOCK_OUT
    SCALES: tl.constexpr = INNER // 128
    slot, first_out = tl.program_id(0) // PROGRAMS, tl.program_id(0) % PROGRAMS * BLOCK_OUT
    expert = _expert(tiles, slot, ONE_EXPERT)
    own = weight + tl.maximum(expert, 0) * (HIDDEN * INNER)
    weight_at = weight_places(own, first_out, HIDDEN, INNER, BLOCK_OUT, OUTS, CHUNKS, CHUNK)
    first_weights = tl.load(weight_at)
    await_previous()
    if expert < 0:
        return
    inner_at = inner + slot * INNER + row_places(OUTS, CHUNKS, CHUNK)
    scale_at = weight_scale + expert * (HIDDEN // 128 * SCALES) + first_out // 128 * SCALES
    sums = tl.zeros((BLOCK_OUT // OUTS, CHUNKS * OUTS, LANES), tl.float32)
    for start in tl.static_range(0, INNER, BLOCK_IN):
        weights = first_weights if start == 0 else tl.load(weight_at + start)
        of_x = block_scales(inner_scale + slot * SCALES, start, OUTS, CHUNKS)
        scale = lane_scales(of_x * block_scales(scale_at, start, OUTS, CHUNKS), LANES)
        values = tl.load(inner_at + start).to(tl.float32)
        sums = add_step(sums, weights, values, scale, LANE)
    outs = first_out + tl.arange(0, BLOCK_OUT)
    tl.store(out + slot * HIDDEN + outs, by_out(sums, OUTS).to(out.dtype.element_ty))


def takes(num_tokens: int, num_copies: int, hidden: int, inner: int, scaling: Scaling) -> bool:
    """Whether these kernels compute the experts of so many tokens: of one, whose copies have an expert each."""
    is_one = num_tokens == 1 and num_copies <= MOST_COUNTED_ROWS
    return is_one and scaling is Scaling.BLOCKS and hidden % STEP == 0 and inner % STEP == 0


@cache
def gate_up_constants(hidden: int, inner: int, is_one_expert: bool) -> dict[str, int | float | bool]:
    """What `gate_up_vector_kernel` is compiled with."""
    sizes = {"ONE_EXPERT": is_one_expert, "HIDDEN": hidden, "INNER": inner, **peak_limits(Scaling.BLOCKS)}
    return {**sizes, "PAIRS": PAIRS, "OUTS": OUTS, "BLOCK_IN": STEP}


@cache
def down_constants(hidden: int, inner: int, is_one_expert: bool) -> dict[str, int | bool]:
    """What `down_vector_kernel` is compiled with."""
    sizes = {"ONE_EXPERT": is_one_expert, "HIDDEN": hidden, "INNER": inner}
    return {**sizes, "BLOCK_OUT": DOWN_OUTS, "OUTS": OUTS, "BLOCK_IN": STEP}


def launch(
    x: tuple[torch.Tensor, torch.Tensor],
    weights: tuple[torch.Tensor, torch.Tensor],
    scales: tuple[torch.Tensor, torch.Tensor],
    arrivals: torch.Tensor,
    tiles: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Fill out [R, H]; x e4m3 [1, H] and its scales, weights and scales of gate_up and of down, R tiles of a row each.

    Without tiles R is 1, the only expert's row. `arrivals`: see `kernels.grouped_swiglu.PackedExperts`.
    """
    (gate_up, down), (num_rows, hidden) = weights, out.shape
    inner_size, num_groups = down.shape[2], down.shape[2] // FP8_BLOCK
    is_one = tiles is None
    assert num_rows * num_groups <= len(arrivals), (
        f"{num_rows} rows of {num_groups} groups, {len(arrivals)} are counted"
    )
    where = out if tiles is None else tiles  # any pointer: the kernels know
    sums = torch.empty(num_rows, inner_size, dtype=torch.float32, device=out.device)
    inner = torch.empty(num_rows, inner_size, dtype=torch.float8_e4m3fn, device=out.device)
    inner_scale = torch.empty(num_rows, num_groups, dtype=torch.float32, device=out.device)
    gate_up_vector_kernel[(num_rows * (inner_size // PAIRS),)](
        *(*x, gate_up, scales[0], sums, inner, inner_scale, arrivals, where),
        **gate_up_constants(hidden, inner_size, is_one),
        **GATE_UP_OPTIONS,
    )
    down_vector_kernel[(num_rows * (hidden // DOWN_OUTS),)](
        *(inner, inner_scale, down, scales[1], out, where),
        **down_constants(hidden, inner_size, is_one),
        **DOWN_OPTIONS,
    )
