"""What a recorded step does beside its forward pass: its rows are moved on, and what was chosen for them is kept.

Of a step that is launched before the host has the tokens of the one before, the host knows all but how many drafts that
one accepts; it lays the rows out as if none were. The device moves them on by that number, takes their tokens from
where the step before put them, and finds their slots in the block table.

Bytes: 82 and 32 a row, in and out, 58 KB at 512 rows: each is a launch, and as a torch operation each line of
`reference` was one, some 35 a step. FLOP: none to speak of.
"""

from __future__ import annotations

import torch

from kernels import native
from kernels.step import reference
from kernels.step.values import Drafted, DraftRows, Outcome, PlannedRows, StepBefore, StepRows


def rows_behind(before: StepBefore, planned: PlannedRows, block_size: int, scratch_slot: int) -> StepRows:
    """What the host laid out, moved on to where the step before got; padding writes to the scratch slot.

    All tensors are contiguous, on one device, in which each sequence has a block and a point wherever its rows get.
    """
    assert planned.positions.dtype == planned.block_tables.dtype == torch.int32, f"positions {planned.positions.dtype}"
    assert planned.block_tables.is_contiguous(), f"block tables have strides {planned.block_tables.stride()}"
    if native.runs_triton(planned.token_ids):
        from kernels.step import triton_kernel  # Triton is imported where it runs

        return triton_kernel.rows_behind(before, planned, block_size, scratch_slot)
    return reference.rows_behind(before, planned, block_size, scratch_slot)


def accept_drafts(
    row_tokens: torch.Tensor,
    token_ids: torch.Tensor,
    best: torch.Tensor,
    row_starts: torch.Tensor,
    before: StepBefore,
    outcome: Outcome,
) -> torch.Tensor:
    """See how many drafts of each sequence were chosen, too; returns the row behind them [B] int64, one of the T.

    token_ids [T] int64 were chosen for rows that hold row_tokens [T] int64, from logits whose highest are best [T]
    fp32. The rows of sequence b are [row_starts[b], row_starts[b + 1]), int32; the draft of a row is what the next one
    of its sequence holds, unless that one has no finite logits: the round ends before it. Sequences without rows
    accept nothing. `before` keeps what the next step starts from, `outcome` what the host is told.
    """
    assert token_ids.dtype == row_tokens.dtype == torch.int64, f"tokens are {row_tokens.dtype}, {token_ids.dtype}"
    assert row_starts.dtype == torch.int32, f"row starts are {row_starts.dtype}"
    assert best.dtype == torch.float32 and len(best) == len(token_ids) == len(row_tokens), f"bests are {best.dtype}"
    if native.runs_triton(token_ids):
        from kernels.step import triton_kernel

        return triton_kernel.accept_drafts(row_tokens, token_ids, best, row_starts, before, outcome)
    return reference.accept_drafts(row_tokens, token_ids, best, row_starts, before, outcome)


def first_drafts(
    logits: torch.Tensor,
    target_ids: torch.Tensor | None,
    positions: torch.Tensor,
    last: torch.Tensor,
    before: StepBefore,
    drafts: torch.Tensor,
) -> Drafted:
    """The likeliest token of each sequence behind the rows of a step, whose positions are [T] int32; `last` [B] int64.

    logits [B, V] fp32, contiguous; ties go to the lower id. target_ids [V] int64 tell the model's token of each, None:
    the same. It is written into `before` and, for the host, into drafts [P, B] int64. Of logits that are NaN a draft
    means nothing, but is a token.
    """
    _check(logits, drafts)
    if native.runs_triton(logits):
        from kernels.step import draft_kernel

        return draft_kernel.first_drafts(logits, target_ids, positions, last, before, drafts)
    return reference.first_drafts(logits, target_ids, positions, last, before, drafts)


def draft_rows(
    drafted: Drafted, num_proposals: torch.Tensor, block_tables: torch.Tensor, block_size: int, scratch_slot: int
) -> DraftRows:
    """The rows of the next pass, for sequences that want num_proposals [B] int32 drafts in all; block tables [B, .]."""
    assert num_proposals.dtype == block_tables.dtype == torch.int32, f"proposals are {num_proposals.dtype}"
    assert block_tables.is_contiguous(), f"block tables have strides {block_tables.stride()}"
    if native.runs_triton(num_proposals):
        from kernels.step import draft_kernel

        return draft_kernel.draft_rows(drafted, num_proposals, block_tables, block_size, scratch_slot)
    return reference.draft_rows(drafted, num_proposals, block_tables, block_size, scratch_slot)


def further_drafts(
    logits: torch.Tensor,
    target_ids: torch.Tensor | None,
    drafted: Drafted,
    before: StepBefore,
    drafts: torch.Tensor,
) -> None:
    """As `first_drafts` behind a pass of `draft_rows`, at most P - 1 times; `drafted` moves on."""
    _check(logits, drafts)
    if native.runs_triton(logits):
        from kernels.step import draft_kernel

        draft_kernel.further_drafts(logits, target_ids, drafted, before, drafts)
    else:
        reference.further_drafts(logits, target_ids, drafted, before, drafts)


def _check(logits: torch.Tensor, drafts: torch.Tensor) -> None:
    assert logits.dtype == torch.float32 and logits.is_contiguous(), f"logits are {logits.dtype}, {logits.stride()}"
    assert drafts.dtype == torch.int64 and drafts.is_contiguous(), f"drafts are {drafts.dtype}, {drafts.stride()}"
    assert len(logits) == drafts.shape[1], f"{len(logits)} logits for {list(drafts.shape)} drafts"
