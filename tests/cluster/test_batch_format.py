"""What the lines of a batch mean, and what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.batch_answers import answer_line, error_line, fault_of
from cluster.batch_format import CHAT, COMPLETIONS, LineFault, parse_line
from sigmoe.errors import DeadlineExceeded, InvalidRequest, ServerFailure, Violation
from sigmoe.results import Candidate, Choice, Completion, TokenLogprob, Usage
from sigmoe.sampling import Sampling

TALK = [{"role": "user", "content": "What is asthma?"}]


def line(body: Any, url: str = CHAT, **fields: Any) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body} | fields).encode()


def chat(**fields: Any) -> bytes:
    return line({"messages": TALK} | fields)


def text(**fields: Any) -> bytes:
    return line({"prompt": "Asthma is"} | fields, COMPLETIONS)


def test_everything_that_a_chat_may_say_arrives() -> None:
    request = parse_line(
        chat(
            model="m", max_completion_tokens=7, min_tokens=2, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1,
            stop="END", seed=3, n=2, logprobs=True, top_logprobs=4, presence_penalty=1, frequency_penalty=0.5,
            ignore_eos=True, repetition_penalty=1.1, logit_bias={"17": -100}, stop_token_ids=[4],
            user="u", metadata={"a": "b"}, stream=False, tools=[], response_format={"type": "text"}, suffix=None,
        ), 1,
    )  # fmt: skip
    assert (request.custom_id, request.model, request.messages, request.is_chat) == ("a", "m", tuple(TALK), True)
    assert request.sampling == Sampling(
        max_tokens=7, min_tokens=2, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, stop=["END"], seed=3, n=2,
        logprobs=4, presence_penalty=1, frequency_penalty=0.5, ignore_eos=True, repetition_penalty=1.1,
        logit_bias={17: -100}, stop_token_ids=[4],
    )  # fmt: skip


def test_completions_take_a_text_or_token_ids_and_a_number_of_logprobs() -> None:
    request = parse_line(text(max_tokens=3, logprobs=2, stop=["a", "b"]), 1)
    assert (request.prompt, request.is_chat) == ("Asthma is", False)
    assert request.sampling == Sampling(max_tokens=3, logprobs=2, stop=["a", "b"])
    assert parse_line(line({"prompt": [3, 4, 5]}, COMPLETIONS), 1).prompt == [3, 4, 5]


def test_a_body_alone_is_enough() -> None:
    assert parse_line(b'{"prompt": "a", "max_tokens": 5}', 17).custom_id == "line-17"
    short = parse_line(json.dumps({"custom_id": "x", "messages": TALK}).encode(), 17)
    assert (short.custom_id, short.messages, short.is_chat) == ("x", tuple(TALK), True)


def test_contents_in_parts_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "asthma?"}]
    request = parse_line(line({"messages": [{"role": "developer", "content": parts}]}), 1)
    assert request.messages == ({"role": "system", "content": "What is asthma?"},)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (line({"messages": TALK}, custom_id=None), "custom_id"),
        (line({"messages": TALK}, custom_id=""), "custom_id"),
        (line({"messages": TALK}, custom_id=7), "custom_id"),
        (line({"messages": TALK}, custom_id="x" * 513), "custom_id"),
        (line({"messages": TALK}, method="GET"), "method"),
        (line({"messages": TALK}, url="/v1/embeddings"), "url"),
        (line({"messages": TALK}, bdy=1), "bdy"),
        (line("text"), "body"),
        (line({}), "body.messages"),
        (line({"messages": []}), "body.messages"),
        (line({"messages": TALK, "prompt": "a"}), "body.prompt"),
        (line({"messages": ["a"]}), "body.messages[0]"),
        (line({"messages": [*TALK, {"content": "a"}]}), "body.messages[1].role"),
        (line({"messages": [{"role": "user"}]}), "body.messages[0].content"),
        (line({"messages": [{"role": "user", "content": "a", "name": "b"}]}), "body.messages[0].name"),
        (line({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "body.messages[0].content[0]"),
        (line({"prompt": ["a", "b"]}, COMPLETIONS), "body.prompt"),
        (line({"prompt": []}, COMPLETIONS), "body.prompt"),
        (chat(model=7), "body.model"),
        (chat(max_tokens="7"), "body.max_tokens"),
        (chat(max_tokens=True), "body.max_tokens"),
        (chat(max_tokens=7, max_completion_tokens=8), "body.max_completion_tokens"),
        (chat(temperature="hot"), "body.temperature"),
        (chat(stop=[1]), "body.stop"),
        (chat(logit_bias={"a": 1}), "body.logit_bias.a"),
        (chat(logit_bias={"²": 1}), "body.logit_bias.²"),
        (chat(logit_bias={"1": "x"}), "body.logit_bias"),
        (chat(logit_bias=[1]), "body.logit_bias"),
        (chat(logprobs=3), "body.logprobs"),
        (chat(top_logprobs=3), "body.top_logprobs"),
        (text(top_logprobs=3), "body.top_logprobs"),
        (text(logprobs=True), "body.logprobs"),
        (chat(stream=True), "body.stream"),
        (chat(tools=[{"type": "function"}]), "body.tools"),
        (chat(response_format={"type": "json_object"}), "body.response_format"),
        (chat(frobnicate=1), "body.frobnicate"),
        (text(best_of=3), "body.best_of"),
        (b'{"prompt": "a", "frobnicate": 1}', "frobnicate"),
    ],
)
def test_a_wrong_field_is_named(raw: bytes, field: str) -> None:
    with pytest.raises(LineFault) as fault:
        parse_line(raw, 1)
    assert (fault.value.code, fault.value.field) == ("invalid_request", field)
    assert field in str(fault.value)


@pytest.mark.parametrize("raw", [b"garbage", b"[1]", b'"a"', b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b"1" * 9999])
def test_what_is_no_json_object_is_said(raw: bytes) -> None:
    with pytest.raises(LineFault) as fault:
        parse_line(raw, 1)
    assert (fault.value.code, fault.value.custom_id) == ("invalid_json", None)


def test_a_fault_keeps_the_line_s_id() -> None:
    with pytest.raises(LineFault) as fault:
        parse_line(chat(stream=True), 1)
    assert fault.value.custom_id == "a"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "model", "max_tokens", "stop", "logprobs", "top_logprobs", "logit_bias"]
)


@given(body=st.dictionaries(FIELDS | st.text(max_size=5), JSON), url=st.sampled_from([CHAT, COMPLETIONS, None]))
def test_nothing_but_a_fault_comes_of_any_line(body: Any, url: Any) -> None:
    whole = {"custom_id": "a", "url": url, "body": body} if url else body
    try:
        request = parse_line(json.dumps(whole).encode(), 1)
    except LineFault as fault:
        json.loads(error_line(0, fault.custom_id, fault_of(fault)))
    else:
        assert request.custom_id


USAGE = Usage(prompt_tokens=5, cached_tokens=4, output_tokens=2, preemptions=0, queue_s=0, prefill_s=0, decode_s=0)
SCORE = TokenLogprob(
    token=Candidate(token_id=1, text="é", logprob=-0.5), top=(Candidate(token_id=2, text="b", logprob=-1.0),)
)


def completion(**fields: Any) -> Completion:
    choices = [Choice(index=i, text=f"t{i}", finish_reason="stop", usage=USAGE, **fields) for i in range(2)]
    return Completion(request_id="r", choices=tuple(choices))


def test_an_answer_is_in_openai_s_format() -> None:
    written = json.loads(answer_line(3, parse_line(chat(), 1), completion(logprobs=(SCORE,)), "m"))
    body = written["response"]["body"]
    assert (written["custom_id"], written["error"], written["response"]["status_code"]) == ("a", None, 200)
    assert (body["object"], body["model"]) == ("chat.completion", "m")
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    first = body["choices"][0]
    assert first["message"] == {"role": "assistant", "content": "t0", "refusal": None}
    assert first["finish_reason"] == "stop"
    (score,) = first["logprobs"]["content"]
    assert (score["token"], score["bytes"], score["top_logprobs"][0]["token"]) == ("é", [0xC3, 0xA9], "b")


def test_an_answer_to_a_completion_has_its_own_form() -> None:
    body = json.loads(answer_line(3, parse_line(text(), 1), completion(logprobs=(SCORE,)), "m"))["response"]["body"]
    assert body["object"] == "text_completion"
    assert [choice["text"] for choice in body["choices"]] == ["t0", "t1"]
    assert body["choices"][0]["logprobs"] == {"tokens": ["é"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.0}]}


def test_a_line_s_id_depends_on_its_place_alone() -> None:
    ids = {json.loads(error_line(index, "a", {}))["id"] for index in (1, 1, 2)}
    assert len(ids) == 2


def test_errors_name_fields_as_the_line_has_them() -> None:
    refused = InvalidRequest("invalid request", [Violation("sampling.top_k", "-1 is not allowed")])
    assert fault_of(refused) == {
        "code": "invalid_request",
        "message": "top_k: -1 is not allowed",
        "param": "top_k",
    }
    assert fault_of(DeadlineExceeded("late"))["code"] == "deadline_exceeded"
    assert fault_of(ServerFailure("broken"))["code"] == "server_error"
