"""The same with plain tensor operations."""

from __future__ import annotations

import torch

from kernels.step.values import Drafted, DraftRows, Outcome, PlannedRows, StepBefore, StepRows


def rows_behind(before: StepBefore, planned: PlannedRows, block_size: int, scratch_slot: int) -> StepRows:
    """See `kernels.step.rows_behind`."""
    is_live = torch.arange(len(planned.positions), device=planned.positions.device) < planned.num_live
    moved = before.accepted.index_select(0, planned.row_places)
    positions = planned.positions + moved
    blocks = planned.block_tables.flatten().index_select(0, planned.table_rows + positions // block_size)
    slots = torch.where(is_live, blocks * block_size + positions % block_size, scratch_slot)
    sources = planned.token_sources
    found = before.coming.flatten().index_select(0, sources.clamp_min(0))
    return StepRows(
        token_ids=torch.where(sources < 0, planned.token_ids, found),
        positions=positions,
        slots=slots,
        draft_slots=torch.where(planned.is_followed, slots, scratch_slot),
        is_live=is_live,
        points=planned.points.index_select(0, planned.point_rows + moved),
        context_lens=planned.context_lens + before.accepted.index_select(0, planned.places),
    )


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
    is_same = best.isfinite().roll(-1) & (token_ids == row_tokens.roll(-1))
    first, last = row_starts[:-1, None], row_starts[1:, None] - 1
    row = torch.arange(num_rows, dtype=torch.int32, device=token_ids.device)
    is_other = (row >= first) & (row < last) & ~is_same
    # The first row of each sequence whose draft was not chosen, or its last.
    stops = torch.cat([torch.where(is_other, row, last), last], dim=1).amin(dim=1)
    accepted = (stops - first[:, 0]).clamp_min(0)
    behind = (row_starts[:-1].long() + accepted).clamp_max(num_rows - 1)
    before.accepted[:num_sequences].copy_(accepted)
    before.coming[before.max_drafts][:num_sequences].copy_(token_ids.index_select(0, behind))
    outcome.token_ids.copy_(token_ids)
    outcome.best.copy_(best)
    outcome.accepted.copy_(accepted)
    return behind


def first_drafts(
    logits: torch.Tensor,
    target_ids: torch.Tensor | None,
    positions: torch.Tensor,
    last: torch.Tensor,
    before: StepBefore,
    drafts: torch.Tensor,
) -> Drafted:
    """See `kernels.step.first_drafts`."""
    drafted = Drafted(
        token_ids=torch.empty_like(last),
        positions=positions.index_select(0, last),
        num_drafts=torch.zeros(len(last), dtype=torch.int32, device=last.device),
    )
    further_drafts(logits, target_ids, drafted, before, drafts)
    return drafted


def draft_rows(
    drafted: Drafted, num_proposals: torch.Tensor, block_tables: torch.Tensor, block_size: int, scratch_slot: int
) -> DraftRows:
    """See `kernels.step.draft_rows`."""
    is_live = drafted.num_drafts < num_proposals
    positions = torch.where(is_live, drafted.positions, 0)
    block = (positions // block_size).long()
    slots = block_tables.gather(1, block[:, None])[:, 0] * block_size + positions % block_size
    return DraftRows(
        positions=positions,
        slots=torch.where(is_live, slots, scratch_slot),
        is_live=is_live,
        context_lens=positions + 1,
        row_starts=torch.arange(len(positions) + 1, dtype=torch.int32, device=positions.device),
    )


def further_drafts(
    logits: torch.Tensor,
    target_ids: torch.Tensor | None,
    drafted: Drafted,
    before: StepBefore,
    drafts: torch.Tensor,
) -> None:
    """See `kernels.step.further_drafts`."""
    best = logits.argmax(dim=-1)
    token_ids = best if target_ids is None else target_ids.index_select(0, best)
    number = drafted.num_drafts[:1].long()
    for kept in (drafts, before.coming[:, : len(token_ids)]):
        kept.index_copy_(0, number, token_ids[None])
    drafted.token_ids.copy_(token_ids)
    drafted.positions.add_(1)
    drafted.num_drafts.add_(1)
