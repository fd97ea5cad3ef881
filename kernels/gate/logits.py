"""The gate's logits, split over H: partial sums that the kernel of the choice adds up.

bf16 scores would change the chosen set, and so would tf32. For few rows, and for hidden states that are not bf16,
products are fp32. Else an fp32 weight is the sum of three bf16 values, to the last of its 24 bits, and what multiplies
it is bf16: the tensor core's products are exact. Its sums are not, since it truncates where fp32 rounds. So it adds 64
or 128 channels at most, the smallest of the three products first; their sums, an eighth of a logit or so, are added in
fp32 outside of it. The error is that of fp32 sums of as many terms as there are steps. An infinity among the hidden
states makes the row's logits NaN on the tensor cores.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels import native
from kernels.gate.tiles import GateTile, gate_tile, invariant_tile
from kernels.launched import launched
from kernels.overlap import await_previous


@triton.jit
def _upper_half(values: tl.tensor) -> tl.tensor:
    """fp32 truncated to bf16: its upper sixteen bits. Conversions are a fourth as fast as what moves bits."""
    return (values.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _leading(values: tl.tensor) -> tl.tensor:
    """fp32 with the bits that `_upper_half` keeps and zeros below."""
    return (values.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _product(weight: tl.tensor, x: tl.tensor) -> tl.tensor:
    """Weight [E, C] fp32 times x [C, T] -> [E, T] fp32, from exact products."""
    if x.dtype == tl.bfloat16:
        rest = weight - _leading(weight)
        total = tl.dot(_upper_half(rest - _leading(rest)), x)
        return tl.dot(_upper_half(weight), x, tl.dot(_upper_half(rest), x, total))
    else:
        return tl.dot(weight, x.to(tl.float32), input_precision="ieee")


@launched
@triton.jit(do_not_specialize=["num_rows"])
def partial_logits_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    partial: tl.tensor,
    num_rows: tl.tensor,
    WIDTH: tl.constexpr,
    SPLIT_WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> None:
    """Hidden [T, H] any float, weight [E, H] fp32 -> partial [SPLITS, T, E] fp32, each over SPLIT_WIDTH channels."""
    await_previous()
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    expert = tl.program_id(1) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)
    split = tl.program_id(2)
    row_start = hidden + row[:, None].to(tl.int64) * WIDTH
    expert_start = weight + expert[:, None] * WIDTH
    is_row, is_expert = row[:, None] < num_rows, expert[:, None] < NUM_EXPERTS
    total = tl.zeros((BLOCK_EXPERTS, BLOCK_ROWS), tl.float32)
    for start in range(0, SPLIT_WIDTH, BLOCK_WIDTH):
        at = split * SPLIT_WIDTH + start + tl.arange(0, BLOCK_WIDTH)[None, :]
        if WIDTH % SPLIT_WIDTH == 0 and NUM_EXPERTS % BLOCK_EXPERTS == 0:
            x = tl.load(row_start + at, mask=is_row, other=0.0)
            w = tl.load(expert_start + at)
        else:
            x = tl.load(row_start + at, mask=is_row & (at < WIDTH), other=0.0)
            w = tl.load(expert_start + at, mask=is_expert & (at < WIDTH), other=0.0)
        total += _product(w, tl.trans(x))
    place = partial + (split.to(tl.int64) * num_rows + row[None, :]) * NUM_EXPERTS + expert[:, None]
    tl.store(place, total, mask=(row[None, :] < num_rows) & (expert[:, None] < NUM_EXPERTS))


@launched
@triton.jit(do_not_specialize=["num_rows"])
def few_partial_logits_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    partial: tl.tensor,
    num_rows: tl.tensor,
    WIDTH: tl.constexpr,
    SPLIT_WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> None:
    """As `partial_logits_kernel`, for BLOCK_ROWS rows at most, one after the other.

    BLOCK_WIDTH channels are what a warp reads at a time, so that each has experts of its own and reads the rows for
    itself, laid out as its weights are: none waits for another. Weights are asked for before the wait: nobody writes
    them while a model runs.
    """
    expert = tl.program_id(1) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)[:, None]
    row = tl.arange(0, BLOCK_ROWS)[None, :]
    split = tl.program_id(2)
    first = split * SPLIT_WIDTH + tl.arange(0, BLOCK_WIDTH)[None, :] + 0 * expert
    weights = tl.tuple(())
    for start in tl.static_range(0, SPLIT_WIDTH, BLOCK_WIDTH):
        exists = (first + start < WIDTH) & (expert < NUM_EXPERTS)
        weights += (tl.load(weight + expert * WIDTH + first + start, mask=exists, other=0.0),)
    await_previous()
    total = tl.zeros((BLOCK_EXPERTS, BLOCK_ROWS), tl.float32)
    for i in tl.static_range(BLOCK_ROWS):
        products = tl.zeros((BLOCK_EXPERTS, BLOCK_WIDTH), tl.float32)
        for step in tl.static_range(SPLIT_WIDTH // BLOCK_WIDTH):
            at = first + step * BLOCK_WIDTH
            x = tl.load(hidden + i * WIDTH + at, mask=at < tl.where(i < num_rows, WIDTH, 0), other=0.0)
            products += weights[step] * x.to(tl.float32)
        total = tl.where(row == i, tl.sum(products, 1)[:, None], total)
    is_wanted = (expert < NUM_EXPERTS) & (row < num_rows)
    tl.store(partial + (split * num_rows + row) * NUM_EXPERTS + expert, total, mask=is_wanted)


def partial_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Hidden [T, H] any float and weight [E, H] fp32 -> sums [SPLITS, T, E] fp32 over the channels of each split."""
    num_rows, (num_experts, width) = hidden.shape[0], weight.shape
    itemsize = 2 if hidden.dtype == torch.bfloat16 else 4
    tile = invariant_tile(itemsize) if native.is_batch_invariant() else gate_tile(num_rows, itemsize)
    splits = tile.num_splits(width)
    partial = torch.empty(splits, num_rows, num_experts, dtype=torch.float32, device=hidden.device)
    grid = (-(-num_rows // tile.block_rows), -(-num_experts // tile.block_experts), splits)
    kernel = few_partial_logits_kernel if tile.has_few_rows else partial_logits_kernel
    kernel[grid](hidden, weight, partial, num_rows, **logits_constants(tile, num_experts, width), **tile.options)
    return partial


@cache
def logits_constants(tile: GateTile, num_experts: int, width: int) -> dict[str, int]:
    """What both kernels are compiled with."""
    return {
        "WIDTH": width,
        "SPLIT_WIDTH": tile.split_width(width),
        "NUM_EXPERTS": num_experts,
        "BLOCK_ROWS": tile.block_rows,
        "BLOCK_EXPERTS": tile.block_experts,
        "BLOCK_WIDTH": tile.block_width,
    }
