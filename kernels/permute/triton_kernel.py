"""Expert order on a GPU, rows into it, and their weighted sum back. Nothing waits for the host or depends on timing.

Bytes: T * K * 4 of ids, each read once by every CHUNK of them (from L2), as many of places written; gather T * H read
and T * K * H written; combine T * K * H read and T * H written, times the element size.
FLOP: T * K * T * K comparisons for a decode, T * K * BLOCK / 2 for a prefill; 2 * T * K * H for the sum.
64 rows of AntAngelMed, K = 8, bf16: gather and combine 4.7 MB each, 1.2 us at 4.0 TB/s (H20 datasheet).
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous

CHUNK = 128  # copies that a program places
OTHERS = 32  # copies that those are compared with at once: 32 comparisons a thread, more would spill
BLOCK = 512  # copies under one histogram, of a prefill
BLOCKS_AT_ONCE = 32  # histograms that are summed in one piece
MAX_COMPARED = 4096  # copies that are ordered by comparing all with all: 32 programs of 4,096 comparisons a thread
ORDER_OPTIONS = launch_options(num_warps=4)
OFFSETS_OPTIONS = launch_options(num_warps=8)
ROW_OPTIONS = launch_options(num_warps=4)


@launched
@triton.jit
def compare_kernel(
    ids: tl.tensor,
    counts: tl.tensor,
    places: tl.tensor,
    num_copies: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
    OTHERS: tl.constexpr,
) -> None:
    """Ids [N] -> places [N] by comparing with every other, and counts [E]: CHUNK of either in a program.

    An id of -1 is nobody's: it compares as the last and is not counted.
    """
    await_previous()
    chunk = tl.program_id(0)
    num_chunks = tl.cdiv(num_copies, CHUNK)
    own = chunk * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros((CHUNK,), tl.int32)
    if chunk < num_chunks:
        own_id = tl.load(ids + own, mask=own < num_copies, other=0)
        for start in range(0, num_copies, OTHERS):
            other = start + tl.arange(0, OTHERS)
            other_id = tl.load(ids + other, mask=other < num_copies, other=NUM_EXPERTS)
            other_id = tl.where(other_id < 0, NUM_EXPERTS, other_id)
            is_same = (other_id[None, :] == own_id[:, None]) & (other[None, :] < own[:, None])
            total += tl.sum(((other_id[None, :] < own_id[:, None]) | is_same).to(tl.int32), 1)
        tl.store(places + own, tl.where(own_id < 0, -1, total), mask=own < num_copies)
    else:
        expert = own - num_chunks * CHUNK
        for start in range(0, num_copies, OTHERS):
            other = start + tl.arange(0, OTHERS)
            other_id = tl.load(ids + other, mask=other < num_copies, other=-1)
            total += tl.sum((other_id[None, :] == expert[:, None]).to(tl.int32), 1)
        tl.store(counts + expert, total, mask=expert < NUM_EXPERTS)


@launched
@triton.jit
def histogram_kernel(
    ids: tl.tensor,
    histograms: tl.tensor,
    num_copies: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """How often each expert occurs in BLOCK of the ids [N]: a row of histograms [N / BLOCK rounded up, E]."""
    await_previous()
    copy = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own_id = tl.load(ids + copy, mask=copy < num_copies, other=-1)
    expert = tl.arange(0, EXPERTS_POW2)
    found = tl.histogram(tl.maximum(own_id, 0), EXPERTS_POW2)
    found -= tl.where(expert == 0, tl.sum((own_id < 0).to(tl.int32), 0), 0)  # nobody's counted as 0
    tl.store(histograms + tl.program_id(0) * NUM_EXPERTS + expert, found, mask=expert < NUM_EXPERTS)


@launched
@triton.jit
def offsets_kernel(
    histograms: tl.tensor,
    counts: tl.tensor,
    num_blocks: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    BLOCKS_AT_ONCE: tl.constexpr,
) -> None:
    """In place: each block's count of an expert -> the place of the block's first copy for it; and counts [E]."""
    await_previous()
    expert = tl.arange(0, EXPERTS_POW2)
    exists = expert < NUM_EXPERTS
    total = tl.zeros((EXPERTS_POW2,), tl.int32)
    for first in range(0, num_blocks, BLOCKS_AT_ONCE):
        block = first + tl.arange(0, BLOCKS_AT_ONCE)[:, None]
        mask = (block < num_blocks) & exists[None, :]
        total += tl.sum(tl.load(histograms + block * NUM_EXPERTS + expert[None, :], mask=mask, other=0), 0)
    tl.store(counts + expert, total, mask=exists)
    passed = tl.cumsum(total, 0) - total
    for first in range(0, num_blocks, BLOCKS_AT_ONCE):
        block = first + tl.arange(0, BLOCKS_AT_ONCE)[:, None]
        mask = (block < num_blocks) & exists[None, :]
        at = histograms + block * NUM_EXPERTS + expert[None, :]
        count = tl.load(at, mask=mask, other=0)
        tl.store(at, passed[None, :] + tl.cumsum(count, 0) - count, mask=mask)
        passed += tl.sum(count, 0)


@launched
@triton.jit
def place_kernel(
    ids: tl.tensor,
    offsets: tl.tensor,
    places: tl.tensor,
    num_copies: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
    OTHERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Places of CHUNK of the ids [N]: their block's offset, and how many before them in the block are the same."""
    await_previous()
    first = tl.program_id(0) * CHUNK
    own = first + tl.arange(0, CHUNK)
    own_id = tl.load(ids + own, mask=own < num_copies, other=-1)
    block = first // BLOCK
    rank = tl.load(offsets + block * NUM_EXPERTS + own_id, mask=own_id >= 0, other=0)
    for start in range(block * BLOCK, first + CHUNK, OTHERS):
        other = start + tl.arange(0, OTHERS)
        other_id = tl.load(ids + other, mask=other < num_copies, other=-1)
        is_same = (other_id[None, :] == own_id[:, None]) & (other[None, :] < own[:, None])
        rank += tl.sum(is_same.to(tl.int32), 1)
    tl.store(places + own, tl.where(own_id < 0, -1, rank), mask=own < num_copies)


@launched
@triton.jit
def gather_kernel(
    hidden: tl.tensor,
    source_rows: tl.tensor,
    rows: tl.tensor,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> None:
    """BLOCK_WIDTH channels of one row of hidden [T, WIDTH], read once and written to its TOP_K places, if any."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    value = tl.load(hidden + row * WIDTH + column, mask=column < WIDTH)
    for k in tl.static_range(TOP_K):
        place = tl.load(source_rows + row * TOP_K + k).to(tl.int64)
        tl.store(rows + place * WIDTH + column, value, mask=column < tl.where(place < 0, 0, WIDTH))


@launched
@triton.jit
def combine_kernel(
    rows: tl.tensor,
    source_rows: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> None:
    """BLOCK_WIDTH channels of one row of out [T, WIDTH]: the fp32 sum over k in order, rounded once."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    total = tl.zeros((BLOCK_WIDTH,), tl.float32)
    for k in tl.static_range(TOP_K):
        place = tl.load(source_rows + row * TOP_K + k).to(tl.int64)
        is_read = column < tl.where(place < 0, 0, WIDTH)
        value = tl.load(rows + place * WIDTH + column, mask=is_read, other=0.0).to(tl.float32)
        total += tl.where(place >= 0, tl.load(weights + row * TOP_K + k), 0.0) * value
    tl.store(out + row * WIDTH + column, total.to(out.dtype.element_ty), mask=column < WIDTH)


def expert_order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.permute.expert_order`."""
    counts = torch.empty(num_experts, dtype=torch.int32, device=ids.device)
    places, num_copies = torch.empty_like(ids), ids.numel()
    num_chunks = -(-num_copies // CHUNK)
    if num_copies <= MAX_COMPARED:
        grid = (num_chunks + -(-num_experts // CHUNK),)
        compare_kernel[grid](ids, counts, places, num_copies, num_experts, CHUNK, OTHERS, **ORDER_OPTIONS)
        return counts, places
    num_blocks, experts_pow2 = -(-num_copies // BLOCK), triton.next_power_of_2(num_experts)
    offsets = torch.empty(num_blocks, num_experts, dtype=torch.int32, device=ids.device)
    histogram_kernel[(num_blocks,)](ids, offsets, num_copies, num_experts, experts_pow2, BLOCK, **ORDER_OPTIONS)
    offsets_kernel[(1,)](offsets, counts, num_blocks, num_experts, experts_pow2, BLOCKS_AT_ONCE, **OFFSETS_OPTIONS)
    place_kernel[(num_chunks,)](ids, offsets, places, num_copies, num_experts, CHUNK, OTHERS, BLOCK, **ORDER_OPTIONS)
    return counts, places


def gather_rows(hidden: torch.Tensor, source_rows: torch.Tensor) -> torch.Tensor:
    """See `kernels.permute.gather_rows`."""
    num_rows, top_k = source_rows.shape
    rows = hidden.new_empty(num_rows * top_k, hidden.shape[1])
    if num_rows:
        constants = row_constants(top_k, hidden.shape[1])
        gather_kernel[_row_grid(num_rows, constants)](hidden, source_rows, rows, **constants, **ROW_OPTIONS)
    return rows


def combine_rows(rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """See `kernels.permute.combine_rows`."""
    num_rows, top_k = source_rows.shape
    out = rows.new_empty(num_rows, rows.shape[1])
    if num_rows:
        constants = row_constants(top_k, rows.shape[1])
        combine_kernel[_row_grid(num_rows, constants)](rows, source_rows, weights, out, **constants, **ROW_OPTIONS)
    return out


@cache
def row_constants(top_k: int, width: int) -> dict[str, int]:
    """What `gather_kernel` and `combine_kernel` are compiled with: sixteen bytes of bf16 a lane."""
    return {"TOP_K": top_k, "WIDTH": width, "BLOCK_WIDTH": min(1024, triton.next_power_of_2(width))}


def _row_grid(num_rows: int, constants: dict[str, int]) -> tuple[int, int]:
    return num_rows, -(-constants["WIDTH"] // constants["BLOCK_WIDTH"])
