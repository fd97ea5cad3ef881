"""What of a request reaches the sampler, row by row."""

from __future__ import annotations

from model.penalties import LogitEdits
from model.proposals import Proposal
from model.sampling import GREEDY, SamplingRow
from scheduler.plan import SequencePlan
from scheduler.request import SamplingParams


def sampling_row(sequence: SequencePlan, ahead: int, proposal: Proposal | None = None) -> SamplingRow:
    """The settings of the row for the output index `ahead` of a sequence's first, after as many of its drafts."""
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
        proposal=proposal,
    )


def has_edits(sequence: SequencePlan) -> bool:
    """Whether anything happens to the logits of any of its rows before temperature."""
    return _edits(sequence, sequence.sampling, 0) is not None  # what masks a later row masks the first


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
