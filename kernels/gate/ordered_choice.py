"""The choice of one row, in one kernel with what kernels/permute makes of it: order, counts, tiles and the load.

Bytes: SPLITS * E * 4 of partial sums, E * 8 of bias and counts, 48 an expert chosen: 6.5 KB for E = 256, so that the
launch is what it costs. FLOP: E * (8 + K), and K * K comparisons. A second row would double the instructions of its
only warp, which are a third of its time; in several warps every reduction would wait for all.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.gate.choice import CHOOSE_OPTIONS, choose, choose_constants, expert_of, is_expert
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.permute import SortedCopies
from kernels.permute.triton_kernel import room_for_order, tile_rows_of

if TYPE_CHECKING:
    from kernels.gate import GateShape


@launched
@triton.jit
def ordered_choice_kernel(
    partial: tl.tensor,
    bias: tl.tensor,
    is_live: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    counts: tl.tensor,
    totals: tl.tensor,
    places: tl.tensor,
    sources: tl.tensor,
    tiles: tl.tensor,
    scale: tl.tensor,
    NUM_TILES: tl.constexpr,
    HAS_LIVE: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_POW2: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    GROUPS_POW2: tl.constexpr,
    SIZE_POW2: tl.constexpr,
    K_POW2: tl.constexpr,
) -> None:
    """The only row: what `choose_kernel` writes, and of its ids, all different, what `compare_kernel` does."""
    await_previous()
    num_copies = tl.full((), TOP_K, tl.int32)
    if HAS_LIVE:
        num_copies = tl.where(tl.load(is_live), TOP_K, 0)
    chosen, chosen_weights, is_chosen = choose(
        *(partial, bias, 0, scale, 1, SPLITS, SPLITS_POW2, NUM_GROUPS, GROUP_SIZE),
        *(TOPK_GROUPS, TOP_K, NORMALISE, GROUPS_POW2, SIZE_POW2, K_POW2),
    )
    slot = tl.arange(0, K_POW2)
    is_slot, is_copy = slot < TOP_K, slot < num_copies
    tl.store(ids + slot, tl.where(is_copy, chosen, -1), mask=is_slot)
    tl.store(weights + slot, chosen_weights, mask=is_slot)
    tl.atomic_add(totals + chosen, 1, mask=is_copy, sem="relaxed")  # no two to one place: nothing depends on timing
    place = tl.arange(0, GROUPS_POW2 * SIZE_POW2)
    exists = is_expert(place, NUM_GROUPS, GROUP_SIZE, SIZE_POW2)
    tl.store(counts + expert_of(place, GROUP_SIZE, SIZE_POW2), is_chosen & (num_copies > 0), mask=exists)

    key = tl.where(is_slot, chosen, NUM_GROUPS * GROUP_SIZE)
    place = tl.sum((key[None, :] < key[:, None]).to(tl.int32), 1)
    tl.store(places + slot, tl.where(is_copy, place, -1), mask=is_slot)
    tl.store(sources + slot, tl.zeros_like(slot), mask=is_slot)
    if NUM_TILES > 0:  # one for each copy, of rows [place, place + 1)
        tile = tiles + 3 * place
        tl.store(tile, tl.where(is_copy, chosen, -1), mask=is_slot)
        tl.store(tile + 1, place, mask=is_slot)
        tl.store(tile + 2, place + 1, mask=is_slot)
        for left in tl.static_range(TOP_K, NUM_TILES):
            tl.store(tiles + 3 * left, -1)


def ordered_choice(
    hidden: torch.Tensor,
    partial: torch.Tensor,
    bias: torch.Tensor,
    shape: GateShape,
    totals: torch.Tensor,
    is_live: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, SortedCopies]:
    """Of the logits' partial sums [SPLITS, T, E] of hidden [T, H]; see `kernels.gate.choose_and_sort`."""
    splits, num_rows, num_experts = partial.shape
    ids = torch.empty(num_rows, shape.top_k, dtype=torch.int32, device=partial.device)
    weights = torch.empty(num_rows, shape.top_k, dtype=torch.float32, device=partial.device)
    counts, places, order = room_for_order(ids, num_experts, tile_rows_of(ids.numel(), num_experts))
    ordered_choice_kernel[(1,)](
        *(partial, bias, ids if is_live is None else is_live, ids, weights, counts, totals, places),
        *(order.sources, order.tiles, shape.scale),
        **ordered_constants(len(order.tiles), splits, num_experts, shape, is_live is not None),
        **CHOOSE_OPTIONS,
    )
    return ids, weights, SortedCopies(rows=hidden, counts=counts, places=places, order=order)


@cache
def ordered_constants(
    num_tiles: int, splits: int, num_experts: int, shape: GateShape, has_live: bool
) -> dict[str, int | bool]:
    """What `ordered_choice_kernel` is compiled with."""
    return {"NUM_TILES": num_tiles, **choose_constants(splits, num_experts, shape, has_live)}
