"""The shapes that steps are padded to. Pure, so that all ranks of a group choose the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from engine.config import EngineConfig
from scheduler.plan import StepShape


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Bucket:
    """Room for so many sequences with so many rows each, which they may share as they like."""

    num_sequences: int
    rows_each: int

    @property
    def num_rows(self) -> int:
        """T of every step that is padded to it."""
        return self.num_sequences * self.rows_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """All combinations of some numbers of sequences and of rows, both ascending."""

    sequences: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """Powers of two and what lies between from 16 on; rows of decodes and of verifications.

        Without a drafter only requests that ask for look-up are drafted for, and these steps run as they are.
        """
        speculation = config.speculation
        max_drafts = speculation.max_drafts if speculation.drafts_by_default else 0
        most = min(config.graphs.max_sequences, config.max_sequences)
        steps = [size for power in range(most.bit_length() + 1) for size in (2**power, 3 * 2**power // 2)]
        sizes = {size for size in steps if size < most and (size < 16 or size % 8 == 0) and size != 3} | {most}
        rows = {min(2**power, 1 + max_drafts) for power in range(max_drafts.bit_length() + 1)} | {1 + max_drafts}
        return cls(sequences=tuple(sorted(sizes)), rows=tuple(sorted(rows)))

    @property
    def all(self) -> tuple[Bucket, ...]:
        """The largest first: what the others need of memory then lies within what it needed."""
        return tuple(
            Bucket(num_sequences=sequences, rows_each=rows)
            for sequences in reversed(self.sequences)
            for rows in reversed(self.rows)
        )

    @property
    def largest(self) -> Bucket:
        """The one that holds whatever another holds."""
        return Bucket(num_sequences=self.sequences[-1], rows_each=self.rows[-1])

    def smallest(self, shape: StepShape) -> Bucket | None:
        """The least of those that hold a step; None where it is too large."""
        sequences = next((size for size in self.sequences if size >= shape.num_sequences), None)
        rows = next((size for size in self.rows if size >= shape.most_rows), None)
        if sequences is None or rows is None:
            return None
        return Bucket(num_sequences=sequences, rows_each=rows)
