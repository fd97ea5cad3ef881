from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.responses import MAX_PER_RESPONSE, stream_responses
from cluster.sequence_stream import Chunk, num_candidates
from scheduler.request import FinishReason, TokenLogprob, Usage
from sigmoe.v1 import inference_service_pb2 as pb
from sigmoe.v1 import types_pb2

USAGE = Usage(num_prompt_tokens=1, num_cached_tokens=0, num_output_tokens=1, queue_s=1.5, prefill_s=0.25, decode_s=2.0)


def sent(chunk: Chunk, *, with_token_ids: bool = True) -> list[pb.GenerateResponse]:
    responses = stream_responses(pb.GenerateResponse, "id", chunk, str, with_token_ids=with_token_ids)
    return list(responses)  # type: ignore[arg-type]


def entries(count: int, num_top: int) -> tuple[TokenLogprob, ...]:
    top = tuple((i, -1.0) for i in range(num_top))
    return tuple(TokenLogprob(token_id=i, logprob=-0.5, top=top) for i in range(count))


def test_a_chunk_is_one_response() -> None:
    chunk = Chunk(index=2, text="a", token_ids=(1,), finish_reason=FinishReason.LENGTH, usage=USAGE)
    (response,) = sent(chunk)
    assert (response.request_id, response.index, response.text) == ("id", 2, "a")
    assert list(response.token_ids) == [1]
    assert response.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert response.usage.queue_time.ToTimedelta().total_seconds() == 1.5


def test_what_does_not_show_is_not_sent() -> None:
    assert sent(Chunk(index=0)) == []
    assert sent(Chunk(index=0, token_ids=(1, 2)), with_token_ids=False) == []
    assert len(sent(Chunk(index=0, token_ids=(1, 2)))) == 1
    assert len(sent(Chunk(index=0, finish_reason=FinishReason.STOP))) == 1


def test_every_reason_has_its_number() -> None:
    numbers = [sent(Chunk(index=0, finish_reason=reason))[0].finish_reason for reason in FinishReason]
    assert sorted(numbers) == [1, 2, 3, 4, 5]


def test_tokens_have_their_texts() -> None:
    (response,) = sent(Chunk(index=0, logprobs=entries(2, 1)))
    assert [entry.token.text for entry in response.logprobs] == ["0", "1"]
    assert [candidate.text for entry in response.logprobs for candidate in entry.top] == ["0", "0"]


counts = st.integers(0, 2500) | st.integers(16_000, 17_000)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2500), st.integers(0, 20), counts, st.none() | st.integers(0, 20), st.booleans())
def test_a_large_chunk_is_cut_and_nothing_is_lost(
    num_prompt: int, prompt_top: int, num_tokens: int, top: int | None, with_token_ids: bool
) -> None:
    logprobs = () if top is None else entries(num_tokens if top < 5 else num_tokens % 2500, top)
    token_ids = tuple(range(len(logprobs) if top is not None else num_tokens))
    chunk = Chunk(
        index=0,
        text="text",
        token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs=entries(num_prompt, prompt_top),
        finish_reason=FinishReason.STOP,
        usage=USAGE,
    )
    responses = sent(chunk, with_token_ids=with_token_ids)
    assert [i for response in responses for i in response.token_ids] == list(token_ids if with_token_ids else ())
    assert [e.token.token_id for response in responses for e in response.logprobs] == [e.token_id for e in logprobs]
    assert sum(len(response.prompt_logprobs) for response in responses) == num_prompt
    assert [response.text for response in responses if response.text] == ["text"] == [responses[-1].text]
    assert [bool(response.finish_reason) for response in responses] == [False] * (len(responses) - 1) + [True]
    for response in responses:
        size = len(response.token_ids)
        size += sum(1 + len(entry.top) for entry in (*response.logprobs, *response.prompt_logprobs))
        assert size <= MAX_PER_RESPONSE
    assert num_candidates(logprobs) == len(logprobs) * (1 + (top or 0))


def test_ids_and_their_scores_stay_together() -> None:
    responses = sent(Chunk(index=0, token_ids=tuple(range(3000)), logprobs=entries(3000, 20)))
    assert len(responses) > 2
    for response in responses:
        assert [entry.token.token_id for entry in response.logprobs] == list(response.token_ids)
