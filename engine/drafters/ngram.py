"""Prompt look-up: what followed the last tokens when they came before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.config import SpeculationConfig
from scheduler.plan import SequencePlan, SequenceResult

# Tokens that an index may catch up in a step beside the step's own rows, some 2 ms: a long beginning found in the
# prefix cache must not keep the others waiting.
_MOST_AT_ONCE = 1024


def with_look_ups(
    sequences: Sequence[SequencePlan], results: Sequence[SequenceResult], limits: SpeculationConfig
) -> tuple[SequenceResult, ...]:
    """The results of a step with the drafts of the sequences that draft by look-up, whose indexes follow its rows."""
    return tuple(
        result
        if planned.ngrams is None or result.error
        else dataclasses.replace(result, draft_ids=_looked_up(planned, result, limits))
        for planned, result in zip(sequences, results, strict=True)
    )


def _looked_up(planned: SequencePlan, result: SequenceResult, limits: SpeculationConfig) -> tuple[int, ...]:
    """What followed the last tokens, those of this step included; nothing while the index lags behind."""
    index, history = planned.ngrams, planned.history
    assert index is not None and len(index) <= len(history), "the index has tokens that the sequence has not"
    num_rows = len(planned.token_ids)
    end = min(planned.start + num_rows, len(history), len(index) + max(num_rows, _MOST_AT_ONCE))
    index.extend(history[len(index) : end], limits.ngram_longest)
    if len(index) < len(history):
        return ()
    index.extend(result.token_ids, limits.ngram_longest)
    return index.look_up(planned.num_proposals, limits.ngram_shortest)
