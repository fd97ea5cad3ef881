"""From logits to what a step brought each sequence: sampling, verification of drafts, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.drafters.memory import DraftMemory
from engine.sampling_rows import sampling_row
from model.logprobs import TokenScore, score_tokens
from model.sampling import Sampled, SamplingRow, sample
from scheduler.plan import SequencePlan, SequenceResult
from scheduler.request import TokenLogprob

_NOTHING = SequenceResult()


def results_from_logits(
    sequences: Sequence[SequencePlan], logits: torch.Tensor, memory: DraftMemory | None = None
) -> tuple[SequenceResult, ...]:
    """Sample and score what each sequence asked for.

    logits [S, V] fp32: for each sequence in turn its rows to be scored, then those to be sampled. Every row to be
    sampled is sampled as if the drafts before it were output, with the random number of its own output index; drafts
    are accepted as long as they are what was sampled. So the tokens are those of plain decoding, one by one.
    Drafts that the `memory` knows as drawn are verified by rejection sampling instead: tokens of the same distribution.
    """
    scored, sampled, at = [], [], 0
    for sequence in sequences:
        scored.append(range(at, at + len(sequence.prompt_logprob_targets)))
        at += len(sequence.prompt_logprob_targets)
        sampled.append(range(at, at + sequence.num_logit_rows))
        at += sequence.num_logit_rows
    assert at == logits.shape[0], f"{logits.shape[0]} rows of logits where the plan asks for {at}"
    picked = [row for rows in sampled for row in rows]
    chosen = sample(
        logits if len(picked) == at else logits[picked],
        [row for sequence in sequences for row in _sampling_rows(sequence, memory)],
    )
    results, first = [], 0
    for sequence, rows in zip(sequences, scored, strict=True):
        prompt_logprobs = _prompt_logprobs(sequence, logits, rows) if rows else ()
        if sequence.num_logit_rows:
            results.append(_verified(sequence, chosen, first, prompt_logprobs))
            first += sequence.num_logit_rows
        else:
            results.append(SequenceResult(prompt_logprobs=prompt_logprobs) if rows else _NOTHING)
    return tuple(results)


def _sampling_rows(sequence: SequencePlan, memory: DraftMemory | None) -> list[SamplingRow]:
    """The settings of a sequence's rows to be sampled."""
    proposals = () if memory is None else memory.take(sequence)
    return [
        sampling_row(sequence, ahead, proposals[ahead] if ahead < len(proposals) else None)
        for ahead in range(sequence.num_logit_rows)
    ]


def _verified(
    sequence: SequencePlan, chosen: Sampled, first: int, prompt_logprobs: tuple[TokenLogprob, ...]
) -> SequenceResult:
    """The drafts that were sampled, too, and the token after them; `first` is the sequence's first row of `chosen`.

    A row that could not be sampled ends the round before it; alone, or first, it is the sequence's error.
    """
    drafts = sequence.draft_ids
    row, end = first, first + len(drafts)
    while row < end and chosen.token_ids[row] == drafts[row - first] and row + 1 not in chosen.errors:
        row += 1
    scores = [chosen.scores.get(r) for r in range(first, row + 1)]
    return SequenceResult(
        token_ids=tuple(chosen.token_ids[first : row + 1]),
        logprobs=tuple(_token_logprob(score) for score in scores if score is not None),
        prompt_logprobs=prompt_logprobs,
        error=chosen.errors.get(first, ""),
    )


def _prompt_logprobs(sequence: SequencePlan, logits: torch.Tensor, rows: range) -> tuple[TokenLogprob, ...]:
    """Score the prompt token that follows each of the rows."""
    targets = sequence.prompt_logprob_targets
    num_top = sequence.sampling.num_prompt_logprobs or 0
    scores = score_tokens(logits[rows.start : rows.stop], targets, [num_top] * len(targets))
    return tuple(_token_logprob(score) for score in scores)


def _token_logprob(score: TokenScore) -> TokenLogprob:
    return TokenLogprob(token_id=score.token_id, logprob=score.logprob, top=score.top)
