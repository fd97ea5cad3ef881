"""A step that is on its way before it was planned: which rows of the plan it holds, and which it does not.

    step n is launched ─► its successor is launched, with tokens that n will choose ─► n is waited for, committed
    step n + 1 is planned: sequences that ended are gone from it, others may have come; what was launched stands

Rows know nothing of one another, so a row that was launched and is not planned is merely not looked at. It wrote one
slot of a block that its sequence had: whoever gets that block writes it later, since the device keeps the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from engine.graphs.steps import Launched
from scheduler.plan import SequencePlan, SequenceResult, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """The step that was launched, and the one before it."""

    launched: Launched
    before: tuple[SequencePlan, ...]
    blocks: dict[int, int]  # by sequence id: the block that its row was written to
    block_size: int
    tokens: dict[int, int] | None = None  # by sequence id: what the one before chose; None: not known yet

    @classmethod
    def of(cls, launched: Launched, before: tuple[SequencePlan, ...], block_size: int) -> Self:
        """A step that was launched just now, behind one of the sequences `before`."""
        blocks = {
            planned.sequence_id: planned.block_table[planned.start // block_size] for planned in launched.sequences
        }
        return cls(launched=launched, before=before, blocks=blocks, block_size=block_size)

    def knowing(self, results: Sequence[SequenceResult]) -> Ahead:
        """With what came of the step before."""
        last = {
            planned.sequence_id: result.token_ids[-1]
            for planned, result in zip(self.before, results, strict=True)
            if result.token_ids
        }
        return replace(self, tokens=last)

    def covers_some(self, plan: StepPlan) -> bool:
        """Whether any row of a plan is on its way."""
        return len(self.rest_of(plan)) < len(plan.sequences)

    def rest_of(self, plan: StepPlan) -> tuple[SequencePlan, ...]:
        """The sequences of a plan that are not on their way."""
        foreseen = {planned.sequence_id: planned for planned in self.launched.sequences}
        return tuple(planned for planned in plan.sequences if not self._is(planned, foreseen.get(planned.sequence_id)))

    def _is(self, planned: SequencePlan, foreseen: SequencePlan | None) -> bool:
        """Whether a row came as foreseen: the place, the blocks, and the token that was chosen for it."""
        assert self.tokens is not None, "the step before was not waited for"
        return (
            foreseen is not None
            and planned.block_table is foreseen.block_table  # a preempted sequence gets a new one
            and planned.block_table[planned.start // self.block_size] == self.blocks[planned.sequence_id]
            and (planned.start, planned.output_index) == (foreseen.start, foreseen.output_index)
            and planned.token_ids == (self.tokens[planned.sequence_id],)
        )
