"""Frames: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import dataclasses
import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.executor import RankStatus
from cluster.frames import (
    _DRAFTING_CODEC,
    _DRAFTS_CODEC,
    _REQUEST_CODEC,
    _SAMPLING_CODEC,
    _STATS_CODEC,
    _STATUS_CODEC,
    _USAGE_CODEC,
    VERSION,
    FrameError,
    _Codec,
    decode_deltas,
    decode_request,
    decode_status,
    encode_deltas,
    encode_request,
    encode_status,
)
from scheduler.request import (
    DraftCounts,
    DraftingState,
    DraftingStatus,
    DraftMethod,
    FinishReason,
    Request,
    Round,
    SamplingParams,
    SchedulerStats,
    TokenDelta,
    TokenLogprob,
    Usage,
)

int64s = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
tokens = st.lists(int64s, max_size=20).map(tuple)
pairs = st.lists(st.tuples(int64s, floats), max_size=4).map(tuple)

samplings = st.builds(
    SamplingParams,
    max_tokens=int64s,
    min_tokens=int64s,
    temperature=floats,
    top_k=int64s,
    top_p=floats,
    min_p=floats,
    repetition_penalty=floats,
    presence_penalty=floats,
    frequency_penalty=floats,
    logit_bias=pairs,
    seed=int64s,
    stop_token_ids=tokens,
    ignore_eos=st.booleans(),
    num_logprobs=st.none() | int64s,
    num_prompt_logprobs=st.none() | int64s,
)
requests = st.builds(
    Request,
    request_id=texts,
    prompt=tokens,
    sampling=samplings,
    num_sequences=int64s,
    priority=int64s,
    deadline_s=st.none() | floats,
    resumed=tokens,
    first_sequence_index=int64s,
    draft_method=st.none() | st.sampled_from(DraftMethod),
    max_drafts=st.none() | int64s,
)
logprobs = st.lists(st.builds(TokenLogprob, token_id=int64s, logprob=floats, top=pairs), max_size=3).map(tuple)
draft_counts = st.builds(DraftCounts, num_rounds=int64s, num_committed=int64s, drafted=tokens, accepted=tokens)
draftings = st.builds(
    DraftingStatus,
    method=st.sampled_from(DraftMethod),
    state=st.sampled_from(DraftingState),
    length=int64s,
    reason=texts,
    counts=draft_counts,
    cost_error=floats,
)
rounds = st.tuples(st.integers(0, 64), st.integers(0, 64), st.integers(0, 2**64 - 1)).map(
    lambda one: Round(max(one[0], one[1]), min(one[0], one[1]), one[2])
)
usages = st.builds(
    Usage,
    num_prompt_tokens=int64s,
    num_cached_tokens=int64s,
    num_output_tokens=int64s,
    num_preemptions=int64s,
    queue_s=floats,
    prefill_s=floats,
    decode_s=floats,
    forward_s=floats,
    sample_s=floats,
    draft_s=floats,
    extend_s=floats,
    draft_method=st.sampled_from(DraftMethod),
    draft_reason=texts,
)
deltas = st.builds(
    TokenDelta,
    request_id=texts,
    sequence_index=int64s,
    token_ids=tokens,
    rounds=st.just(()) | st.lists(rounds, max_size=3).map(tuple),
    logprobs=st.just(()) | logprobs,
    prompt_logprobs=st.just(()) | logprobs,
    finish_reason=st.none() | st.sampled_from(FinishReason),
    error=st.just("") | texts,
    usage=st.none() | usages,
)
_STATS_FLOATS = ("forward_s", "sample_s", "draft_s", "extend_s")
stats = st.builds(
    SchedulerStats,
    **{
        field.name: floats if field.name in _STATS_FLOATS else int64s
        for field in dataclasses.fields(SchedulerStats)
        if field.name != "drafting"
    },
    drafting=st.lists(draftings, max_size=2).map(tuple),
)
statuses = st.builds(
    RankStatus,
    rank=int64s,
    device=texts,
    host=texts,
    pid=int64s,
    is_alive=st.booleans(),
    experts=tokens,
    stats=st.none() | stats,
    num_steps=int64s,
    num_tokens=int64s,
    weight_bytes=int64s,
    kv_bytes=int64s,
    expert_tokens=tokens,
    kernels=texts,
)
decoders = st.sampled_from([decode_request, decode_deltas, decode_status])
trees = st.recursive(
    st.none() | st.booleans() | int64s | st.floats() | texts | st.binary(),
    lambda inner: st.lists(inner, max_size=16) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=60,
)


@given(requests)
def test_a_request_comes_back(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@given(st.lists(deltas, max_size=5).map(tuple))
def test_deltas_come_back_in_order(batch: tuple[TokenDelta, ...]) -> None:
    assert decode_deltas(encode_deltas(batch)) == batch


@given(statuses)
def test_a_status_comes_back(status: RankStatus) -> None:
    assert decode_status(encode_status(status)) == status


@pytest.mark.parametrize(
    ("record", "codec"),
    [
        (SamplingParams, _SAMPLING_CODEC),
        (Request, _REQUEST_CODEC),
        (SchedulerStats, _STATS_CODEC),
        (DraftingStatus, _DRAFTING_CODEC),
        (DraftCounts, _DRAFTS_CODEC),
        (RankStatus, _STATUS_CODEC),
        (Usage, _USAGE_CODEC),
    ],
)
def test_every_field_travels(record: type, codec: _Codec[object]) -> None:
    assert [field.name for field in dataclasses.fields(record)] == list(codec._checks)


def test_log_probabilities_may_be_infinite_or_nan() -> None:
    entries = (TokenLogprob(token_id=1, logprob=-math.inf, top=((2, math.nan),)),)
    delta = TokenDelta(request_id="a", sequence_index=0, token_ids=(1,), logprobs=entries)
    (back,) = decode_deltas(encode_deltas([delta]))
    assert back.logprobs[0].logprob == -math.inf
    assert math.isnan(back.logprobs[0].top[0][1])


def test_a_whole_number_may_stand_for_a_float() -> None:
    request = Request(request_id="a", prompt=(1,), sampling=SamplingParams(max_tokens=1, temperature=1))
    temperature = decode_request(encode_request(request)).sampling.temperature
    assert (temperature, type(temperature)) == (1.0, float)


@given(decoders, st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_frame_error(decode: object, frame: bytes) -> None:
    try:
        decode(frame)  # type: ignore[operator]
    except FrameError:
        return
    assert decode is decode_deltas and frame == encode_deltas([])


@given(decoders, st.integers(0, 4), trees)
def test_any_content_is_a_frame_or_a_frame_error(decode: object, kind: int, body: object) -> None:
    frame = msgpack.packb((VERSION, kind, body))
    try:
        decode(frame)  # type: ignore[operator]
    except FrameError:
        return
    assert decode is decode_deltas and isinstance(body, list)


@given(requests, st.data())
def test_a_damaged_request_never_crashes(request: Request, data: st.DataObject) -> None:
    frame = bytearray(encode_request(request))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    try:
        decode_request(bytes(frame))
    except FrameError:
        return


@pytest.mark.parametrize("entry", [(1, 2, 1), (-1, -1, 1), (65, 0, 1), (1, 1, -1), (1, 1), (1, 1, "1"), 1])
def test_what_is_no_round_is_refused(entry: object) -> None:
    with pytest.raises(FrameError):
        decode_deltas(msgpack.packb((VERSION, 2, [("a", 0, (1,), (entry,))])))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(FrameError):
        decode_deltas(b"\x91" * 100_000 + b"\x01")


def test_the_message_names_the_field() -> None:
    body = _REQUEST_CODEC.encode(Request(request_id="a", prompt=(1,), sampling=SamplingParams(max_tokens=1)))
    body[1] = [1, "2"]
    with pytest.raises(FrameError, match=r"Request\.prompt: expected an array of integers"):
        decode_request(msgpack.packb((VERSION, 1, body)))


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(FrameError, match=f"frame of version {VERSION + 1}, this side speaks {VERSION}"):
        decode_deltas(msgpack.packb((VERSION + 1, 2, [])))


def test_kinds_are_not_mixed_up() -> None:
    with pytest.raises(FrameError, match="frame of kind 2, expected 1"):
        decode_request(encode_deltas([]))


def test_a_number_beyond_64_bits_does_not_fit() -> None:
    with pytest.raises(FrameError, match="does not fit"):
        encode_deltas([TokenDelta(request_id="a", sequence_index=2**64)])


def test_a_plain_decode_is_small() -> None:
    delta = TokenDelta(request_id="0123456789abcdef", sequence_index=0, token_ids=(151_000,))
    assert len(encode_deltas([delta] * 32)) < 32 * 28
    of_round = dataclasses.replace(delta, token_ids=(151_000,) * 3, rounds=(Round(3, 2, 3),))
    assert len(encode_deltas([of_round] * 32)) < 32 * (28 + 10 + 5)
