"""What the kernels of a recorded step are given and give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBefore:
    """What the last step left, whatever its bucket, by the place of a sequence in it."""

    accepted: torch.Tensor  # [S + 1] int32, drafts; the last is 0 for ever, for sequences that follow on nothing
    coming: torch.Tensor  # [P + 1, S] int64: what it drafted, and last of all the token that it chose behind the others
    arrivals: torch.Tensor  # [S] int32, of programs that share a sequence's logits: zeros between kernels

    @classmethod
    def of(cls, num_places: int, max_drafts: int, device: torch.device) -> Self:
        """For steps of so many sequences at most."""
        return cls(
            accepted=torch.zeros(num_places + 1, dtype=torch.int32, device=device),
            coming=torch.zeros(max_drafts + 1, num_places, dtype=torch.int64, device=device),
            arrivals=torch.zeros(num_places, dtype=torch.int32, device=device),
        )

    @property
    def num_places(self) -> int:
        """S; as a place, that of sequences that follow on nothing."""
        return self.coming.shape[1]

    @property
    def max_drafts(self) -> int:
        """P."""
        return self.coming.shape[0] - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRows:
    """T rows of B sequences as the host laid them out: as if the step before accepted no draft; padding lies behind."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int32
    token_sources: torch.Tensor  # [T] int32, where in `StepBefore.coming` a row's token is; -1: `token_ids` says it
    row_places: torch.Tensor  # [T] int32, of a row's sequence in the step before; see `StepBefore.num_places`
    table_rows: torch.Tensor  # [T] int32, where in all of `block_tables` those of a row's sequence begin
    point_rows: torch.Tensor  # [T] int32, where in `points` a row's is
    is_followed: torch.Tensor  # [T] bool: the draft model computes the row, too
    points: torch.Tensor  # fp64, of each sequence for its rows, and as many further ones as it may be moved on by
    context_lens: torch.Tensor  # [B] int32
    places: torch.Tensor  # [B] int32, of each sequence in the step before
    block_tables: torch.Tensor  # [B, most blocks] int32
    num_live: torch.Tensor  # [1] int32, rows that are no padding


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """The same as they are run."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int32
    slots: torch.Tensor  # [T] int32; of padding the scratch slot
    draft_slots: torch.Tensor  # [T] int32, of the draft model's rows; the scratch slot where it does not follow
    is_live: torch.Tensor  # [T] bool: the row is no padding
    points: torch.Tensor  # [T] fp64
    context_lens: torch.Tensor  # [B] int32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step tells the host."""

    token_ids: torch.Tensor  # [T] int64, chosen for each row
    best: torch.Tensor  # [T] fp32, the highest logit: where it is not finite, nothing could be chosen
    accepted: torch.Tensor  # [B] int32, drafts that were chosen, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """How far the drafts of each sequence are, which a pass of the draft model moves on in place."""

    token_ids: torch.Tensor  # [B] int64, the last draft
    positions: torch.Tensor  # [B] int32, of the next pass
    num_drafts: torch.Tensor  # [B] int32, proposed so far: of all sequences equally many, wanted or not


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRows:
    """A pass of the draft model, of one row a sequence."""

    positions: torch.Tensor  # [B] int32; of sequences that want no draft more 0
    slots: torch.Tensor  # [B] int32; of these the scratch slot
    is_live: torch.Tensor  # [B] bool: the sequence wants one
    context_lens: torch.Tensor  # [B] int32
    row_starts: torch.Tensor  # [B + 1] int32
