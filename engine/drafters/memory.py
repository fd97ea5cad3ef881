"""What drawn drafts were drawn from, kept until they are verified."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from model.proposals import Proposal
from scheduler.plan import SequencePlan


@dataclass(frozen=True, slots=True)
class _Round:
    output_index: int  # of the first draft
    proposals: list[Proposal | None]


class DraftMemory:
    """The proposals of the last round of each sequence, of at most `capacity` sequences.

    Of a round that is not remembered the drafts are verified by the match rule: exact as well, with fewer accepted. So
    is a draft that was not drawn, which is None here. The others of its round keep their proposals: which rule a draft
    is verified by must not depend on what it is or what came after it, or the rules together would not be exact.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rounds: OrderedDict[int, _Round] = OrderedDict()

    def keep(self, sequence_id: int, output_index: int, proposal: Proposal | None) -> None:
        """Remember a draft for this index of a sequence's output: the next of its round, or the first of another."""
        known = self._rounds.get(sequence_id)
        if known is not None and known.output_index + len(known.proposals) == output_index:
            known.proposals.append(proposal)
            return
        self._rounds.pop(sequence_id, None)
        if len(self._rounds) >= self._capacity:
            self._rounds.popitem(last=False)
        self._rounds[sequence_id] = _Round(output_index, [proposal])

    def take(self, planned: SequencePlan) -> tuple[Proposal | None, ...]:
        """The proposals behind the drafts that a sequence verifies now; none where they are not remembered."""
        known = self._rounds.pop(planned.sequence_id, None)
        drafts = planned.draft_ids
        if known is None or not drafts or known.output_index != planned.output_index:
            return ()
        proposals = tuple(known.proposals[: len(drafts)])
        is_same = len(proposals) == len(drafts) and all(
            one is None or one.token_id == draft for one, draft in zip(proposals, drafts, strict=True)
        )
        return proposals if is_same else ()
