"""Prompt look-up: what followed the last tokens when they came before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.config import SpeculationConfig
from scheduler.plan import SequencePlan, SequenceResult
from scheduler.request import DraftMethod


def look_up(tokens: Sequence[int], num: int, *, longest: int, shortest: int) -> tuple[int, ...]:
    """Up to `num` tokens that followed the most recent earlier occurrence of the last n tokens.

    n runs from `longest` down to `shortest`; the first that occurs decides. Nothing where none does. The search walks
    backwards over the list once for each n: microseconds for a thousand tokens, against milliseconds for a step.
    """
    known = list(tokens)
    for size in range(min(longest, len(known) - 1), shortest - 1, -1):
        tail, last = known[-size:], known[-1]
        end = len(known) - 1  # exclusive end of the place looked at
        while end >= size:
            # The last token of the match stands before `end`; list.index would search forwards.
            if known[end - 1] == last and known[end - size : end] == tail:
                return tuple(known[end : end + num])
            end -= 1
    return ()


def with_look_ups(
    sequences: Sequence[SequencePlan], results: Sequence[SequenceResult], limits: SpeculationConfig
) -> tuple[SequenceResult, ...]:
    """The results of a step with the drafts of the sequences that draft by look-up."""
    return tuple(
        dataclasses.replace(
            result,
            draft_ids=look_up(
                [*planned.history, *result.token_ids],
                planned.num_proposals,
                longest=limits.ngram_longest,
                shortest=limits.ngram_shortest,
            ),
        )
        if planned.draft_method is DraftMethod.NGRAM and planned.num_proposals and not result.error
        else result
        for planned, result in zip(sequences, results, strict=True)
    )
