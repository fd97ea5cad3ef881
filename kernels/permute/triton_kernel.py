"""Expert order on a GPU, rows into it, and their weighted sum back. Nothing waits for the host or depends on timing.

Bytes: T * K * 4 of ids, each read once by every program (from L2), as many of places and of sources written; combine
T * K * H read and T * H written, gather, of a group alone, T * H and T * K * H, times the element size.
FLOP: T * K * T * K comparisons for a decode, T * K * BLOCK / 2 for a prefill; 2 * T * K * H for the sum.
64 rows of AntAngelMed, K = 8, bf16: combine 4.7 MB, 1.2 us at 4.0 TB/s (H20 datasheet).
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels import native
from kernels.launch import launch_options, loads_first
from kernels.launched import launched
from kernels.linear.tiles import INVARIANT_ROWS
from kernels.overlap import await_previous
from kernels.permute import RowOrder
from kernels.permute.tile_map import store_tiles
from kernels.permute.tiles import max_tiles, narrow_tile_rows

COMPARED_CHUNK = 16  # copies that a program places by comparing with all
COMPARED_OTHERS = 128  # copies that those are compared with at once: 16 comparisons a thread, more would spill
CHUNK = 128  # copies that a program places within their block
OTHERS = 32  # copies that those are compared with at once: 32 comparisons a thread, more would spill
BLOCK = 512  # copies under one histogram, of a prefill
BLOCKS_AT_ONCE = 32  # histograms that are summed in one piece
MAX_COMPARED = 4096  # copies that are ordered by comparing all with all: 256 programs of 512 comparisons a thread
ORDER_OPTIONS = launch_options(num_warps=4)
OFFSETS_OPTIONS = launch_options(num_warps=8)
ROW_OPTIONS = launch_options(num_warps=4)
COMBINE_OPTIONS = loads_first(ROW_OPTIONS)


@triton.jit
def _histogram(
    ids: tl.tensor, first: tl.tensor, num_copies: tl.tensor, EXPERTS_POW2: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """How often each expert occurs in BLOCK of the ids [num_copies] from `first` on."""
    copy = first + tl.arange(0, BLOCK)
    own_id = tl.load(ids + copy, mask=copy < num_copies, other=-1)
    found = tl.histogram(tl.maximum(own_id, 0), EXPERTS_POW2)
    nobodys = tl.sum((own_id < 0).to(tl.int32), 0)
    return found - tl.where(tl.arange(0, EXPERTS_POW2) == 0, nobodys, 0)  # nobody's was counted as 0


@triton.jit
def _store_counts(
    counts: tl.tensor, totals: tl.tensor, found: tl.tensor, NUM_EXPERTS: tl.constexpr, HAS_TOTALS: tl.constexpr
) -> None:
    """The counts, and the totals that grow by them."""
    expert = tl.arange(0, found.shape[0])
    exists = expert < NUM_EXPERTS
    tl.store(counts + expert, found, mask=exists)
    if HAS_TOTALS:
        total = tl.load(totals + expert, mask=exists, other=0)
        tl.store(totals + expert, total + found.to(tl.int64), mask=exists)


@launched
@triton.jit(do_not_specialize=["num_tiles"])
def compare_kernel(
    ids: tl.tensor,
    counts: tl.tensor,
    totals: tl.tensor,
    places: tl.tensor,
    sources: tl.tensor,
    tiles: tl.tensor,
    num_copies: tl.tensor,
    num_tiles: tl.tensor,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    HAS_TOTALS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    OTHERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Ids [N] -> places [N] and sources [N] by comparing with every other, CHUNK in a program; the last one counts.

    An id of -1 is nobody's: it compares as the last and is not counted. The last program also adds to the totals and,
    unless TILE_ROWS is 0, maps tiles.
    """
    await_previous()
    first = tl.program_id(0) * CHUNK
    if first < num_copies:
        own = first + tl.arange(0, CHUNK)
        own_id = tl.load(ids + own, mask=own < num_copies, other=-1)
        own_key = own_id * num_copies + own  # ordered as (id, copy)
        before = tl.zeros((CHUNK, OTHERS), tl.int32)
        for start in range(0, num_copies, OTHERS):
            other = start + tl.arange(0, OTHERS)
            other_id = tl.load(ids + other, mask=other < num_copies, other=-1)
            other_key = tl.where(other_id < 0, NUM_EXPERTS, other_id) * num_copies + other
            before += (other_key[None, :] < own_key[:, None]).to(tl.int32)
        place = tl.sum(before, 1)
        tl.store(places + own, tl.where(own_id < 0, -1, place), mask=own < num_copies)
        tl.store(sources + place, own // TOP_K, mask=own_id >= 0)
    else:
        found = tl.zeros((EXPERTS_POW2,), tl.int32)
        for start in range(0, num_copies, BLOCK):
            found += _histogram(ids, start, num_copies, EXPERTS_POW2, BLOCK)
        _store_counts(counts, totals, found, NUM_EXPERTS, HAS_TOTALS)
        if TILE_ROWS > 0:
            store_tiles(tiles, found, num_tiles, TILE_ROWS)


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
    expert = tl.arange(0, EXPERTS_POW2)
    found = _histogram(ids, tl.program_id(0) * BLOCK, num_copies, EXPERTS_POW2, BLOCK)
    tl.store(histograms + tl.program_id(0) * NUM_EXPERTS + expert, found, mask=expert < NUM_EXPERTS)


@launched
@triton.jit
def offsets_kernel(
    histograms: tl.tensor,
    counts: tl.tensor,
    totals: tl.tensor,
    num_blocks: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    HAS_TOTALS: tl.constexpr,
    BLOCKS_AT_ONCE: tl.constexpr,
) -> None:
    """In place: each block's count of an expert -> the place of the block's first copy for it; and counts, totals."""
    await_previous()
    expert = tl.arange(0, EXPERTS_POW2)
    exists = expert < NUM_EXPERTS
    total = tl.zeros((EXPERTS_POW2,), tl.int32)
    for first in range(0, num_blocks, BLOCKS_AT_ONCE):
        block = first + tl.arange(0, BLOCKS_AT_ONCE)[:, None]
        mask = (block < num_blocks) & exists[None, :]
        total += tl.sum(tl.load(histograms + block * NUM_EXPERTS + expert[None, :], mask=mask, other=0), 0)
    _store_counts(counts, totals, total, NUM_EXPERTS, HAS_TOTALS)
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
    sources: tl.tensor,
    num_copies: tl.tensor,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
    OTHERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Places, sources of CHUNK of the ids [N]: their block's offset, and how many before them in it are the same."""
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
    tl.store(sources + rank, own // TOP_K, mask=own_id >= 0)


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


@triton.jit
def weighted_sum(
    rows: tl.tensor,
    source_rows: tl.tensor,
    weights: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """The fp32 sum over k, in order, of some columns of a row's answers; all are asked for before any is added."""
    places, shares, values = tl.tuple(()), tl.tuple(()), tl.tuple(())
    for k in tl.static_range(TOP_K):
        places += (tl.load(source_rows + row * TOP_K + k).to(tl.int64),)
        shares += (tl.load(weights + row * TOP_K + k),)
    for k in tl.static_range(TOP_K):
        is_read = column < tl.where(places[k] < 0, 0, WIDTH)
        values += (tl.load(rows + places[k] * WIDTH + column, mask=is_read, other=0.0),)
    total = tl.zeros(column.shape, tl.float32)
    for k in tl.static_range(TOP_K):
        total += tl.where(places[k] >= 0, shares[k], 0.0) * values[k].to(tl.float32)
    return total


@launched
@triton.jit
def combine_kernel(
    rows: tl.tensor,
    source_rows: tl.tensor,
    weights: tl.tensor,
    plus: tl.tensor,
    out: tl.tensor,
    PLUS: tl.constexpr,
    TOP_K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> None:
    """BLOCK_WIDTH channels of one row of out [T, WIDTH]: the fp32 sum over k in order, rounded once; PLUS another."""
    await_previous()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    if PLUS:
        more = tl.load(plus + row * WIDTH + column, mask=column < WIDTH, other=0.0)
    total = weighted_sum(rows, source_rows, weights, row, column, TOP_K, WIDTH).to(out.dtype.element_ty)
    if PLUS:
        total = (total.to(tl.float32) + more.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + row * WIDTH + column, total, mask=column < WIDTH)


def expert_order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.permute.expert_order`."""
    counts, places, _ = _ordered(ids, num_experts, None, 0)
    return counts, places


def row_order(
    ids: torch.Tensor, num_experts: int, totals: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, RowOrder]:
    """Counts, places and order; see `kernels.permute.sort_by_expert`."""
    return _ordered(ids, num_experts, totals, tile_rows_of(ids.numel(), num_experts))


def tile_rows_of(num_copies: int, num_experts: int) -> int:
    """Rows of the tiles that are mapped with the order; 0: none are."""
    if num_copies > MAX_COMPARED:
        return 0
    return INVARIANT_ROWS if native.is_batch_invariant() else narrow_tile_rows(num_copies, num_experts)


def room_for_order(ids: torch.Tensor, num_experts: int, tile_rows: int) -> tuple[torch.Tensor, torch.Tensor, RowOrder]:
    """Counts [E], places like ids and an order of them, to be filled."""
    counts = torch.empty(num_experts, dtype=torch.int32, device=ids.device)
    sources = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device)
    num_tiles = max_tiles(ids.numel(), num_experts, tile_rows) if tile_rows else 0
    tiles = torch.empty(num_tiles, 3, dtype=torch.int32, device=ids.device)
    return counts, torch.empty_like(ids), RowOrder(sources, tiles, tile_rows)


def _ordered(
    ids: torch.Tensor, num_experts: int, totals: torch.Tensor | None, tile_rows: int
) -> tuple[torch.Tensor, torch.Tensor, RowOrder]:
    counts, places, order = room_for_order(ids, num_experts, tile_rows)
    num_copies, top_k = ids.numel(), ids.shape[1]
    sums = counts if totals is None else totals  # any pointer where there are none
    experts = experts_constants(num_experts, totals is not None)
    if num_copies <= MAX_COMPARED:
        grid = (-(-num_copies // COMPARED_CHUNK) + 1,)
        compare_kernel[grid](
            *(ids, counts, sums, places, order.sources, order.tiles, num_copies, len(order.tiles)),
            **compare_constants(top_k, num_experts, totals is not None, tile_rows),
            **ORDER_OPTIONS,
        )
        return counts, places, order
    num_blocks, experts_pow2 = -(-num_copies // BLOCK), triton.next_power_of_2(num_experts)
    offsets = torch.empty(num_blocks, num_experts, dtype=torch.int32, device=ids.device)
    histogram_kernel[(num_blocks,)](ids, offsets, num_copies, num_experts, experts_pow2, BLOCK, **ORDER_OPTIONS)
    offsets_kernel[(1,)](offsets, counts, sums, num_blocks, **experts, BLOCKS_AT_ONCE=BLOCKS_AT_ONCE, **OFFSETS_OPTIONS)
    place_kernel[(-(-num_copies // CHUNK),)](
        *(ids, offsets, places, order.sources, num_copies), **place_constants(top_k, num_experts), **ORDER_OPTIONS
    )
    return counts, places, order


@cache
def experts_constants(num_experts: int, has_totals: bool) -> dict[str, int | bool]:
    """What the kernels that count are compiled with."""
    powers = {"NUM_EXPERTS": num_experts, "EXPERTS_POW2": triton.next_power_of_2(max(num_experts, 1))}
    return {**powers, "HAS_TOTALS": has_totals}


@cache
def compare_constants(top_k: int, num_experts: int, has_totals: bool, tile_rows: int) -> dict[str, int | bool]:
    """What `compare_kernel` is compiled with."""
    sizes = {"TOP_K": top_k, "TILE_ROWS": tile_rows, "CHUNK": COMPARED_CHUNK, "OTHERS": COMPARED_OTHERS, "BLOCK": BLOCK}
    return {**experts_constants(num_experts, has_totals), **sizes}


@cache
def place_constants(top_k: int, num_experts: int) -> dict[str, int]:
    """What `place_kernel` is compiled with."""
    return {"TOP_K": top_k, "NUM_EXPERTS": num_experts, "CHUNK": CHUNK, "OTHERS": OTHERS, "BLOCK": BLOCK}


def gather_rows(hidden: torch.Tensor, source_rows: torch.Tensor) -> torch.Tensor:
    """See `kernels.permute.gather_rows`."""
    num_rows, top_k = source_rows.shape
    rows = hidden.new_empty(num_rows * top_k, hidden.shape[1])
    if num_rows:
        constants = row_constants(top_k, hidden.shape[1])
        gather_kernel[_row_grid(num_rows, constants)](hidden, source_rows, rows, **constants, **ROW_OPTIONS)
    return rows


def combine_rows(
    rows: torch.Tensor, source_rows: torch.Tensor, weights: torch.Tensor, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """See `kernels.permute.combine_rows`."""
    num_rows, top_k = source_rows.shape
    out = rows.new_empty(num_rows, rows.shape[1])
    if num_rows:
        constants = row_constants(top_k, rows.shape[1])
        combine_kernel[_row_grid(num_rows, constants)](
            *(rows, source_rows, weights, rows if plus is None else plus, out),
            PLUS=plus is not None,
            **constants,
            **COMBINE_OPTIONS,
        )
    return out


@cache
def row_constants(top_k: int, width: int) -> dict[str, int]:
    """What `gather_kernel` and `combine_kernel` are compiled with: sixteen bytes of bf16 a lane."""
    return {"TOP_K": top_k, "WIDTH": width, "BLOCK_WIDTH": min(1024, triton.next_power_of_2(width))}


def _row_grid(num_rows: int, constants: dict[str, int]) -> tuple[int, int]:
    return num_rows, -(-constants["WIDTH"] // constants["BLOCK_WIDTH"])
