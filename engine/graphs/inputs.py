"""What a step of a bucket is given and gives back, each in one piece of memory that is copied at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from engine.graphs.buckets import Bucket
from kernels.sample import DrawSettings
from kernels.step.values import Outcome, PlannedRows

_ALIGNMENT = 16  # bytes, of every part

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """The tensors of a bucket of T rows and B sequences; live rows lie in front, those of a sequence together.

    What is not described here is in `kernels.step.values.PlannedRows`.
    """

    token_ids: torch.Tensor  # [T] int64
    top_k: torch.Tensor  # [T] int64
    top_p: torch.Tensor  # [T] fp64
    points: torch.Tensor  # [T + B * P] fp64: of each sequence for its rows, and P further ones
    temperature: torch.Tensor  # [T] fp32
    min_p: torch.Tensor  # [T] fp32
    positions: torch.Tensor  # [T] int32
    token_sources: torch.Tensor  # [T] int32
    row_places: torch.Tensor  # [T] int32
    table_rows: torch.Tensor  # [T] int32
    point_rows: torch.Tensor  # [T] int32
    row_starts: torch.Tensor  # [B + 1] int32
    context_lens: torch.Tensor  # [B] int32
    num_proposals: torch.Tensor  # [B] int32
    places: torch.Tensor  # [B] int32
    block_tables: torch.Tensor  # [B, most blocks] int32
    num_live: torch.Tensor  # [1] int32
    is_followed: torch.Tensor  # [T] bool

    @classmethod
    def layout(cls, bucket: Bucket, table_width: int, max_drafts: int) -> Layout:
        """The dtype and shape of each field; P is `max_drafts`."""
        rows, sequences = (bucket.num_rows,), (bucket.num_sequences,)
        of_rows: dict[torch.dtype, tuple[str, ...]] = {
            torch.int64: ("token_ids", "top_k"),
            torch.float64: ("top_p",),
            torch.float32: ("temperature", "min_p"),
            torch.int32: ("positions", "token_sources", "row_places", "table_rows", "point_rows"),
            torch.bool: ("is_followed",),
        }
        return {name: (dtype, rows) for dtype, names in of_rows.items() for name in names} | {
            "points": (torch.float64, (bucket.num_rows + bucket.num_sequences * max_drafts,)),
            "places": (torch.int32, sequences),
            "row_starts": (torch.int32, (bucket.num_sequences + 1,)),
            "context_lens": (torch.int32, sequences),
            "num_proposals": (torch.int32, sequences),
            "block_tables": (torch.int32, (bucket.num_sequences, table_width)),
            "num_live": (torch.int32, (1,)),
        }

    @property
    def planned(self) -> PlannedRows:
        """Where the rows lie and what they hold, but for how far they are moved on."""
        return PlannedRows(
            token_ids=self.token_ids,
            positions=self.positions,
            token_sources=self.token_sources,
            row_places=self.row_places,
            table_rows=self.table_rows,
            point_rows=self.point_rows,
            is_followed=self.is_followed,
            points=self.points,
            context_lens=self.context_lens,
            places=self.places,
            block_tables=self.block_tables,
            num_live=self.num_live,
        )

    def settings(self, points: torch.Tensor) -> DrawSettings:
        """How each row's token is chosen, with the points [T] of the rows as they are run."""
        return DrawSettings(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, points=points
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutputs:
    """What comes of it; of padding it means nothing."""

    token_ids: torch.Tensor  # [T] int64, chosen for each row
    drafts: torch.Tensor  # [P, B] int64, proposed for the next step
    best: torch.Tensor  # [T] fp32, the highest logit: where it is not finite, nothing could be chosen
    accepted: torch.Tensor  # [B] int32, drafts that were chosen, too

    @classmethod
    def layout(cls, bucket: Bucket, max_drafts: int) -> Layout:
        """The dtype and shape of each field."""
        return {
            "token_ids": (torch.int64, (bucket.num_rows,)),
            "drafts": (torch.int64, (max_drafts, bucket.num_sequences)),
            "best": (torch.float32, (bucket.num_rows,)),
            "accepted": (torch.int32, (bucket.num_sequences,)),
        }

    @property
    def outcome(self) -> Outcome:
        """What comes of the first part of a step."""
        return Outcome(token_ids=self.token_ids, best=self.best, accepted=self.accepted)


def num_bytes(layout: Layout) -> int:
    """Of memory that holds all fields."""
    return sum(_room(*field) for field in layout.values())


def parts_of(memory: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """The fields as they lie in `memory`, uint8."""
    parts, start = {}, 0
    for name, (dtype, shape) in layout.items():
        parts[name] = memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        start += _room(dtype, shape)
    return parts


def _room(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
