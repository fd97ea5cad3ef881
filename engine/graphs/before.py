"""What a step left on the device, and the rows of its successor, which the host asks for before it knows them.

Of such a row the host knows all but how many drafts the step before accepts; it lays it out as if none were. The device
moves it on by that number, takes its token from where the step before put it, and finds its slot in the block table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from engine.graphs.buckets import Bucket
from engine.graphs.inputs import StepInputs
from kernels.sample import DrawSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBefore:
    """What the last step left, whatever its bucket, by the place of a sequence in it."""

    accepted: torch.Tensor  # [S + 1] int32, drafts; the last is 0 for ever, for sequences that follow on nothing
    coming: torch.Tensor  # [P + 1, S] int64: what it drafted, and last of all the token that it chose behind the others

    @classmethod
    def of(cls, largest: Bucket, max_drafts: int, device: torch.device) -> Self:
        """For steps of any bucket up to the largest."""
        return cls(
            accepted=torch.zeros(largest.num_sequences + 1, dtype=torch.int32, device=device),
            coming=torch.zeros(max_drafts + 1, largest.num_sequences, dtype=torch.int64, device=device),
        )

    @property
    def num_places(self) -> int:
        """S; as a place, that of sequences that follow on nothing."""
        return self.coming.shape[1]

    @property
    def max_drafts(self) -> int:
        """P."""
        return self.coming.shape[0] - 1

    def take(self, accepted: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Keep what a step chose, both [B]: how many drafts, and the token behind them."""
        num_sequences = len(accepted)
        self.accepted[:num_sequences].copy_(accepted)
        self.coming[self.max_drafts][:num_sequences].copy_(token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """The rows of a step as they are run; fields as in `StepInputs`, unless said."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor  # [T] int32; of padding the scratch slot
    draft_slots: torch.Tensor  # [T] int32, of the draft model's rows; the scratch slot where it does not follow
    context_lens: torch.Tensor
    settings: DrawSettings


def rows_behind(
    before: StepBefore, inputs: StepInputs, is_live: torch.Tensor, block_size: int, scratch_slot: int
) -> StepRows:
    """What the host laid out, moved on to where the step before got; padding (not `is_live` [T]) writes to a slot.

    No look at a value, and few operations, since each is a kernel: see region.py.
    """
    moved = before.accepted.index_select(0, inputs.row_places)
    positions = inputs.positions + moved
    blocks = inputs.block_tables.flatten().index_select(0, inputs.table_rows + positions // block_size)
    slots = torch.where(is_live, blocks * block_size + positions % block_size, scratch_slot)
    sources = inputs.token_sources
    found = before.coming.flatten().index_select(0, sources.clamp_min(0))
    token_ids = torch.where(sources < 0, inputs.token_ids, found)
    # Each sequence has numbers for all the places that its rows may move to.
    points = inputs.points.index_select(0, inputs.point_rows + moved)
    return StepRows(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        draft_slots=torch.where(inputs.is_followed, slots, scratch_slot),
        context_lens=inputs.context_lens + before.accepted.index_select(0, inputs.places),
        settings=replace(inputs.settings, points=points),
    )
