"""One launch before the forward pass, and one behind the choice of its tokens.

Bytes: 82 a row and 16 a sequence before it, 32 of each behind; at one row a launch and three loads that wait for one
another, about 2 us. FLOP: none to speak of.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.step.values import Outcome, PlannedRows, StepBefore, StepRows

AT_ONCE = 32  # rows of a program, or drafts that are compared at once: a warp's
OPTIONS = launch_options(num_warps=1)


@launched
@triton.jit(do_not_specialize=["num_rows", "num_sequences", "scratch_slot"])
def rows_behind_kernel(
    accepted: tl.tensor,
    coming: tl.tensor,
    planned_ids: tl.tensor,
    planned_positions: tl.tensor,
    token_sources: tl.tensor,
    row_places: tl.tensor,
    table_rows: tl.tensor,
    point_rows: tl.tensor,
    is_followed: tl.tensor,
    planned_points: tl.tensor,
    planned_lens: tl.tensor,
    places: tl.tensor,
    block_tables: tl.tensor,
    num_live: tl.tensor,
    token_ids: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    draft_slots: tl.tensor,
    is_live: tl.tensor,
    points: tl.tensor,
    context_lens: tl.tensor,
    num_rows: tl.tensor,
    num_sequences: tl.tensor,
    scratch_slot: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """AT_ONCE rows, and as many sequences."""
    await_previous()
    row = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    is_row, is_sequence = row < num_rows, row < num_sequences

    # Whatever waits for nothing first, then what waits for it: three loads one behind the other.
    place = tl.load(row_places + row, mask=is_row, other=0)
    sequence_place = tl.load(places + row, mask=is_sequence, other=0)
    source = tl.load(token_sources + row, mask=is_row, other=-1)
    planned = tl.load(planned_positions + row, mask=is_row, other=0)
    table_row = tl.load(table_rows + row, mask=is_row, other=0)
    point_row = tl.load(point_rows + row, mask=is_row, other=0)
    token_id = tl.load(planned_ids + row, mask=is_row, other=0)
    follows = tl.load(is_followed + row, mask=is_row, other=0) != 0
    context_len = tl.load(planned_lens + row, mask=is_sequence, other=0)
    lives = row < tl.load(num_live)

    moved = tl.load(accepted + place, mask=is_row, other=0)
    sequence_moved = tl.load(accepted + sequence_place, mask=is_sequence, other=0)
    found = tl.load(coming + source, mask=is_row & (source >= 0), other=0)

    position = planned + moved
    block = tl.load(block_tables + table_row + position // BLOCK_SIZE, mask=is_row, other=0)
    point = tl.load(planned_points + point_row + moved, mask=is_row, other=0.0)

    slot = tl.where(lives, block * BLOCK_SIZE + position % BLOCK_SIZE, scratch_slot)
    tl.store(token_ids + row, tl.where(source < 0, token_id, found), mask=is_row)
    tl.store(positions + row, position, mask=is_row)
    tl.store(slots + row, slot, mask=is_row)
    tl.store(draft_slots + row, tl.where(follows, slot, scratch_slot), mask=is_row)
    tl.store(is_live + row, lives, mask=is_row)
    tl.store(points + row, point, mask=is_row)
    tl.store(context_lens + row, context_len + sequence_moved, mask=is_sequence)


@launched
@triton.jit(do_not_specialize=["num_rows", "num_sequences", "line"])
def accept_kernel(
    row_tokens: tl.tensor,
    token_ids: tl.tensor,
    best: tl.tensor,
    row_starts: tl.tensor,
    before_accepted: tl.tensor,
    coming: tl.tensor,
    told_ids: tl.tensor,
    told_best: tl.tensor,
    told_accepted: tl.tensor,
    behind: tl.tensor,
    num_rows: tl.tensor,
    num_sequences: tl.tensor,
    line: tl.tensor,
    AT_ONCE: tl.constexpr,
) -> None:
    """One sequence, and AT_ONCE rows to copy, whosesoever. The tokens behind drafts come from `line` on in `coming`."""
    await_previous()
    number = tl.program_id(0)
    lane = tl.arange(0, AT_ONCE)
    copied = number * AT_ONCE + lane
    is_row, is_sequence = copied < num_rows, number < num_sequences
    # All of them before the first use: what waits for one load waits for the others meanwhile.
    token_id = tl.load(token_ids + copied, mask=is_row, other=0)
    highest = tl.load(best + copied, mask=is_row, other=0.0)
    first = tl.load(row_starts + number, mask=is_sequence, other=0)
    last = tl.load(row_starts + number + 1, mask=is_sequence, other=0) - 1

    count = tl.maximum(last - first, 0)
    for start in range(first, last, AT_ONCE):
        row = start + lane
        chosen = tl.load(token_ids + row, mask=row < last, other=0)
        drafted = tl.load(row_tokens + row + 1, mask=row < last, other=0)
        is_sound = tl.abs(tl.load(best + row + 1, mask=row < last, other=0.0)) < float("inf")
        count = tl.minimum(count, tl.min(tl.where((chosen == drafted) & is_sound, count, row - first), 0))
    row_behind = tl.minimum(first + count, num_rows - 1)
    coming_id = tl.load(token_ids + row_behind)

    tl.store(told_ids + copied, token_id, mask=is_row)
    tl.store(told_best + copied, highest, mask=is_row)
    tl.store(before_accepted + number, count, mask=is_sequence)
    tl.store(told_accepted + number, count, mask=is_sequence)
    tl.store(behind + number, row_behind.to(tl.int64), mask=is_sequence)
    tl.store(coming + line + number, coming_id, mask=is_sequence)


def rows_behind(before: StepBefore, planned: PlannedRows, block_size: int, scratch_slot: int) -> StepRows:
    """See `kernels.step.rows_behind`."""
    num_rows, num_sequences = len(planned.token_ids), len(planned.context_lens)
    rows = StepRows(
        token_ids=torch.empty_like(planned.token_ids),
        positions=torch.empty_like(planned.positions),
        slots=torch.empty_like(planned.positions),
        draft_slots=torch.empty_like(planned.positions),
        is_live=torch.empty_like(planned.is_followed),
        points=planned.points.new_empty(num_rows),
        context_lens=torch.empty_like(planned.context_lens),
    )
    rows_behind_kernel[(triton.cdiv(max(num_rows, num_sequences), AT_ONCE),)](
        *(before.accepted, before.coming, planned.token_ids, planned.positions, planned.token_sources),
        *(planned.row_places, planned.table_rows, planned.point_rows, planned.is_followed, planned.points),
        *(planned.context_lens, planned.places, planned.block_tables, planned.num_live),
        *(rows.token_ids, rows.positions, rows.slots, rows.draft_slots, rows.is_live, rows.points, rows.context_lens),
        *(num_rows, num_sequences, scratch_slot),
        **rows_constants(block_size),
        **OPTIONS,
    )
    return rows


def rows_constants(block_size: int) -> dict[str, int]:
    """What `rows_behind_kernel` is compiled with."""
    return {"BLOCK_SIZE": block_size, "AT_ONCE": AT_ONCE}


def accept_drafts(
    row_tokens: torch.Tensor,
    token_ids: torch.Tensor,
    best: torch.Tensor,
    row_starts: torch.Tensor,
    before: StepBefore,
    outcome: Outcome,
) -> torch.Tensor:
    """See `kernels.step.accept_drafts`."""
    num_rows, num_sequences = len(token_ids), len(row_starts) - 1
    behind = torch.empty(num_sequences, dtype=torch.int64, device=token_ids.device)
    accept_kernel[(max(num_sequences, triton.cdiv(num_rows, AT_ONCE)),)](
        *(row_tokens, token_ids, best, row_starts, before.accepted, before.coming),
        *(outcome.token_ids, outcome.best, outcome.accepted, behind),
        *(num_rows, num_sequences, before.max_drafts * before.num_places),
        AT_ONCE=AT_ONCE,
        **OPTIONS,
    )
    return behind
