"""A step that is on its way before it was planned: which rows of the plan it holds, and which it does not.

    step n is launched ─► its successor is launched, with tokens that n chooses and drafts, behind those it accepts
    step n is waited for, committed ─► step n + 1 is planned: sequences that ended are gone, others may have come

What was launched stands where the plan has exactly it. Rows know nothing of another sequence's, so those that were
launched and not planned are merely not looked at. They wrote behind all that the sequence keeps, to blocks that it had:
whoever gets such a block writes it later, since the device keeps the order, and reads nothing that it did not write.

Rows that were planned and not launched run behind the others on a rank that is alone. In a group the others' ranks have
launched no step that they could be part of, so they wait for the next one.
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
    coming: StepPlan  # what was launched
    before: tuple[SequencePlan, ...]
    blocks: dict[int, list[int]]  # by sequence id: those that it may have written to, and further ones
    block_size: int
    found: dict[int, SequenceResult] | None = None  # by sequence id: what came of the one before; None: not known yet

    @classmethod
    def of(cls, launched: Launched, coming: StepPlan, before: tuple[SequencePlan, ...], block_size: int) -> Self:
        """A step that was launched just now, behind one of the sequences `before`."""
        blocks = {
            planned.sequence_id: list(planned.block_table[planned.start // block_size :])
            for planned in coming.sequences
        }
        return cls(launched=launched, coming=coming, before=before, blocks=blocks, block_size=block_size)

    def knowing(self, results: Sequence[SequenceResult]) -> Ahead:
        """With what came of the step before."""
        pairs = zip(self.before, results, strict=True)
        return replace(self, found={planned.sequence_id: result for planned, result in pairs if result.token_ids})

    def rest_of(self, plan: StepPlan) -> tuple[SequencePlan, ...]:
        """The sequences of a plan that are not on their way."""
        foreseen = {planned.sequence_id: planned for planned in self.coming.sequences}
        return tuple(planned for planned in plan.sequences if not self._is(planned, foreseen.get(planned.sequence_id)))

    def part_of(self, plan: StepPlan) -> StepPlan:
        """What of a plan is on its way, as the group runs it."""
        rest = {planned.sequence_id for planned in self.rest_of(plan)}
        sequences = tuple(planned for planned in plan.sequences if planned.sequence_id not in rest)
        return StepPlan(
            step_id=plan.step_id,
            sequences=sequences,
            num_rows=sum(len(planned.token_ids) for planned in sequences),
            num_draft_passes=self.coming.num_draft_passes,
            shape=self.coming.shape,
            group=self.coming.group,
            is_launched=True,
        )

    def _is(self, planned: SequencePlan, foreseen: SequencePlan | None) -> bool:
        """Whether a sequence came as foreseen: the place, the blocks, the tokens, and what it wants drafted."""
        assert self.found is not None, "the step before was not waited for"
        if foreseen is None or planned.block_table is not foreseen.block_table:  # a preempted sequence gets a new one
            return False
        found = self.found[planned.sequence_id]
        num_accepted = len(found.token_ids) - 1
        first = foreseen.start // self.block_size
        end = -(-(planned.start + len(planned.token_ids) + planned.num_proposals) // self.block_size)
        return (
            planned.start == foreseen.start + num_accepted
            and planned.output_index == foreseen.output_index + num_accepted
            and planned.token_ids == (found.token_ids[-1], *found.draft_ids)
            and len(planned.token_ids) == len(foreseen.token_ids)
            and planned.draft_method is foreseen.draft_method
            and planned.num_proposals == foreseen.num_proposals
            and list(planned.block_table[first:end]) == self.blocks[planned.sequence_id][: end - first]
        )
