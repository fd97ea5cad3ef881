"""From logits to what a step brought each sequence: sampling, verification of drafts, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.logprobs import TokenScore, score_tokens
from model.penalties import LogitEdits
from model.sampling import GREEDY, Sampled, SamplingRow, sample
from scheduler.plan import SequencePlan, SequenceResult
from scheduler.request import SamplingParams, TokenLogprob

_NOTHING = SequenceResult()


def results_from_logits(sequences: Sequence[SequencePlan], logits: torch.Tensor) -> tuple[SequenceResult, ...]:
    """Sample and score what each sequence asked for.

    logits [S, V] fp32: for each sequence in turn its rows to be scored, then those to be sampled. Every row to be
    sampled is sampled as if the drafts before it were output, with the random number of its own output index; drafts
    are accepted as long as they are what was sampled. So the tokens are those of plain decoding, one by one.
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
        [_sampling_row(sequence, ahead) for sequence in sequences for ahead in range(sequence.num_logit_rows)],
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


def _sampling_row(sequence: SequencePlan, ahead: int) -> SamplingRow:
    """The settings of a row to be sampled, `ahead` drafts after the first."""
    params = sequence.sampling
    edits = _edits(sequence, params, ahead)
    if params.temperature == 0.0 and edits is None and params.num_logprobs is None:
        return GREEDY
    return SamplingRow(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        sequence_index=sequence.sequence_index,
        output_index=sequence.output_index + ahead,
        num_logprobs=params.num_logprobs,
        edits=edits,
    )


def _edits(sequence: SequencePlan, params: SamplingParams, ahead: int) -> LogitEdits | None:
    """What happens to the logits before temperature; None where nothing does."""
    forbidden = sequence.stop_token_ids if sequence.output_index + ahead < params.min_tokens else ()
    has_penalty = params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    if not (has_penalty or params.logit_bias or forbidden):
        return None
    return LogitEdits(
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        forbidden_token_ids=forbidden,
        history=[*sequence.history, *sequence.draft_ids[:ahead]] if ahead and has_penalty else sequence.history,
        num_prompt_tokens=sequence.num_prompt_tokens,
    )


def _prompt_logprobs(sequence: SequencePlan, logits: torch.Tensor, rows: range) -> tuple[TokenLogprob, ...]:
    """Score the prompt token that follows each of the rows."""
    targets = sequence.prompt_logprob_targets
    num_top = sequence.sampling.num_prompt_logprobs or 0
    scores = score_tokens(logits[rows.start : rows.stop], targets, [num_top] * len(targets))
    return tuple(_token_logprob(score) for score in scores)


def _token_logprob(score: TokenScore) -> TokenLogprob:
    return TokenLogprob(token_id=score.token_id, logprob=score.logprob, top=score.top)
