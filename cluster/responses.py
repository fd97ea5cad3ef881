"""Values to wire messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cluster.sampling_rules import DRAFT_MODELS
from cluster.sequence_stream import Chunk, num_candidates
from cluster.serving import seconds_message
from scheduler.request import DraftCounts, FinishReason, TokenLogprob, Usage
from sigmoe.v1 import inference_service_pb2 as inference
from sigmoe.v1 import types_pb2

# Tokens and candidates in one response: well under a megabyte, where clients take four by default.
MAX_PER_RESPONSE = 16_384

Response = inference.GenerateResponse | inference.ChatResponse
TextOf = Callable[[int], str]  # a token's own text

_REASONS = {
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: types_pb2.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: types_pb2.FINISH_REASON_DEADLINE,
    FinishReason.ERROR: types_pb2.FINISH_REASON_ERROR,
}


def stream_responses(
    kind: type[Response], request_id: str, chunk: Chunk, text_of: TextOf, *, with_token_ids: bool
) -> Iterator[Response]:
    """The responses that carry a chunk: one as a rule, none where nothing shows yet, several where it is large."""
    token_ids = chunk.token_ids if with_token_ids else ()
    has_end = chunk.finish_reason is not None
    if not (chunk.text or token_ids or chunk.logprobs or chunk.prompt_logprobs or has_end):
        return
    slices = list(_slices(chunk.prompt_logprobs, chunk.logprobs, token_ids))
    for prompt_logprobs, logprobs, ids in slices[:-1]:
        yield kind(
            request_id=request_id,
            index=chunk.index,
            token_ids=ids,
            logprobs=logprob_messages(logprobs, text_of),
            prompt_logprobs=logprob_messages(prompt_logprobs, text_of),
        )
    prompt_logprobs, logprobs, ids = slices[-1]
    yield kind(
        request_id=request_id,
        index=chunk.index,
        text=chunk.text,
        token_ids=ids,
        logprobs=logprob_messages(logprobs, text_of),
        prompt_logprobs=logprob_messages(prompt_logprobs, text_of),
        finish_reason=None if chunk.finish_reason is None else _REASONS[chunk.finish_reason],
        error=chunk.error,
        usage=None if chunk.usage is None else usage_message(chunk.usage, chunk.drafts),
    )


def logprob_messages(entries: Iterable[TokenLogprob], text_of: TextOf) -> list[types_pb2.TokenLogprob]:
    """Log-probabilities with each token's own text."""
    return [
        types_pb2.TokenLogprob(
            token=_candidate(entry.token_id, entry.logprob, text_of),
            top=[_candidate(token_id, logprob, text_of) for token_id, logprob in entry.top],
        )
        for entry in entries
    ]


def draft_counts(counts: DraftCounts | None) -> types_pb2.DraftCounts | None:
    """What drafting brought; None where there was no round."""
    if counts is None or not counts.num_rounds:
        return None
    return types_pb2.DraftCounts(
        rounds=counts.num_rounds,
        committed_tokens=counts.num_committed,
        drafted=counts.drafted,
        accepted=counts.accepted,
        rounds_by_length=counts.rounds_by_length,
    )


def usage_message(usage: Usage, drafts: DraftCounts | None) -> types_pb2.Usage:
    """What a sequence cost, and what drafting brought it."""
    return types_pb2.Usage(
        prompt_tokens=usage.num_prompt_tokens,
        cached_tokens=usage.num_cached_tokens,
        output_tokens=usage.num_output_tokens,
        preemptions=usage.num_preemptions,
        queue_time=seconds_message(usage.queue_s),
        prefill_time=seconds_message(usage.prefill_s),
        decode_time=seconds_message(usage.decode_s),
        drafts=draft_counts(drafts),
        draft_method=DRAFT_MODELS[usage.draft_method],
        draft_reason=usage.draft_reason,
        forward_time=seconds_message(usage.forward_s),
        sample_time=seconds_message(usage.sample_s),
        draft_time=seconds_message(usage.draft_s),
        extend_time=seconds_message(usage.extend_s),
    )


def _candidate(token_id: int, logprob: float, text_of: TextOf) -> types_pb2.Candidate:
    return types_pb2.Candidate(token_id=token_id, text=text_of(token_id), logprob=logprob)


_Slice = tuple[tuple[TokenLogprob, ...], tuple[TokenLogprob, ...], tuple[int, ...]]


def _slices(
    prompt_logprobs: tuple[TokenLogprob, ...], logprobs: tuple[TokenLogprob, ...], token_ids: tuple[int, ...]
) -> Iterator[_Slice]:
    """(prompt log-probabilities, log-probabilities, token ids) of each response; the last one may be empty.

    A token's id and its log-probability travel together.
    """
    total = num_candidates(prompt_logprobs) + num_candidates(logprobs) + len(token_ids)
    if total <= MAX_PER_RESPONSE:
        yield prompt_logprobs, logprobs, token_ids
        return
    for part in _runs(prompt_logprobs):
        yield part, (), ()
    per_token = 1 + max((1 + len(entry.top) for entry in logprobs), default=0)
    size = max(1, MAX_PER_RESPONSE // per_token)
    for start in range(0, max(len(logprobs), len(token_ids)), size):
        yield (), logprobs[start : start + size], token_ids[start : start + size]
    yield (), (), ()


def _runs(entries: tuple[TokenLogprob, ...]) -> Iterator[tuple[TokenLogprob, ...]]:
    size = max(1, MAX_PER_RESPONSE // max((1 + len(entry.top) for entry in entries), default=1))
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
