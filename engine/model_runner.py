"""The runner that computes: batch, forward pass, sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.batch import build_batch
from model.bailing import BailingModel
from model.kv_cache import KVCache
from model.logprobs import TokenScore, score_tokens
from model.penalties import LogitEdits
from model.sampling import GREEDY, SamplingRow, sample
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepResult
from scheduler.request import SamplingParams, TokenLogprob


class ModelRunner:
    """One rank's model and KV cache behind the runner's seam."""

    def __init__(self, model: BailingModel, kv: KVCache, device: torch.device) -> None:
        self._model = model
        self._kv = kv
        self._device = device

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """See `engine.runner.Runner`."""
        batch = build_batch(plan, self._kv.block_size, self._device)
        logits = self._model.forward(batch, self._kv).logits
        return StepResult(step_id=plan.step_id, sequences=results_from_logits(plan.sequences, logits))


def results_from_logits(sequences: Sequence[SequencePlan], logits: torch.Tensor) -> tuple[SequenceResult, ...]:
    """Sample and score what each sequence asked for.

    logits [S, V] fp32: for each sequence in turn its rows to be scored, then the row to be sampled, if any.
    """
    scored, sampled, at = [], [], 0
    for sequence in sequences:
        assert sequence.num_logit_rows <= 1, "rows of drafts cannot be verified yet"
        scored.append(range(at, at + len(sequence.prompt_logprob_targets)))
        at += len(sequence.prompt_logprob_targets)
        sampled.append(at if sequence.num_logit_rows else None)
        at += sequence.num_logit_rows
    assert at == logits.shape[0], f"{logits.shape[0]} rows of logits where the plan asks for {at}"
    owners = [i for i, row in enumerate(sampled) if row is not None]
    picked = logits if len(owners) == at else logits[[row for row in sampled if row is not None]]
    chosen = sample(picked, [_sampling_row(sequences[i]) for i in owners])
    results = [
        SequenceResult(prompt_logprobs=_prompt_logprobs(sequence, logits, rows)) if rows else _NOTHING
        for sequence, rows in zip(sequences, scored, strict=True)
    ]
    for r, i in enumerate(owners):
        score = chosen.scores.get(r)
        results[i] = SequenceResult(
            token_ids=(chosen.token_ids[r],),
            logprobs=(_token_logprob(score),) if score else (),
            prompt_logprobs=results[i].prompt_logprobs,
            error=chosen.errors.get(r, ""),
        )
    return tuple(results)


_NOTHING = SequenceResult()


def _sampling_row(sequence: SequencePlan) -> SamplingRow:
    """The settings of the row to be sampled."""
    params = sequence.sampling
    edits = _edits(sequence, params)
    if params.temperature == 0.0 and edits is None and params.num_logprobs is None:
        return GREEDY
    return SamplingRow(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        sequence_index=sequence.sequence_index,
        output_index=sequence.output_index,
        num_logprobs=params.num_logprobs,
        edits=edits,
    )


def _edits(sequence: SequencePlan, params: SamplingParams) -> LogitEdits | None:
    """What happens to the logits before temperature; None where nothing does."""
    forbidden = sequence.stop_token_ids if sequence.output_index < params.min_tokens else ()
    has_penalty = params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    if not (has_penalty or params.logit_bias or forbidden):
        return None
    return LogitEdits(
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        forbidden_token_ids=forbidden,
        history=sequence.history,
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
