"""One contract for both clients: what is sent, what comes back, what is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

import sigmoe
from sigmoe import AsyncClient, Client, RetryPolicy, Sampling

from .conftest import ScriptedServer, bad_request, overloaded

FAST_RETRY = RetryPolicy(max_attempts=3, initial_s=0.001, max_s=0.002)
USER = [{"role": "user", "content": "Hi"}]

Act = Callable[[Any], Any]


def run_sync(address: str, act: Act, **options: Any) -> Any:
    with Client(address, retry=FAST_RETRY, **options) as client:
        return act(client)


def run_async(address: str, act: Act, **options: Any) -> Any:
    async def go() -> Any:
        async with AsyncClient(address, retry=FAST_RETRY, **options) as client:
            answer = act(client)
            return await answer if isinstance(answer, Awaitable) else answer

    return asyncio.run(go())


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


def test_a_completion_joins_the_chunks_of_each_sequence(server: ScriptedServer, run: Callable[..., Any]) -> None:
    done = run(server.address, lambda c: c.generate("Hi", Sampling(n=2, max_tokens=2)).result())
    assert [choice.text for choice in done.choices] == ["Hello world", "Hello world"]
    assert [choice.finish_reason for choice in done.choices] == ["length", "length"]
    assert done.choices[1].usage.output_tokens == 2 and done.request_id == "r1"


def test_only_what_is_set_is_sent(server: ScriptedServer, run: Callable[..., Any]) -> None:
    run(server.address, lambda c: c.generate([4, 5], Sampling(temperature=0.0, logit_bias={3: -1.0})).result())
    sent = server.requests[0]
    assert list(sent.tokens.ids) == [4, 5]
    assert {field.name for field, _ in sent.sampling.ListFields()} == {"temperature", "logit_bias"}


def test_chat_sends_the_turns(server: ScriptedServer, run: Callable[..., Any]) -> None:
    assert run(server.address, lambda c: c.chat(USER).result()).text == "Hello world"
    assert server.requests[0].messages[0].content == "Hi"


def test_the_other_calls(server: ScriptedServer, run: Callable[..., Any]) -> None:
    assert run(server.address, lambda c: c.tokenize("Hello")).pieces == ("He", "llo")
    assert run(server.address, lambda c: c.tokenize(USER)).ids == (1, 2)
    assert run(server.address, lambda c: c.detokenize([1, 2])) == "Hello"
    assert run(server.address, lambda c: c.score([1, 2])).logprobs[0].token.logprob == -0.5
    assert run(server.address, lambda c: c.model()).eos_token_ids == (0,)
    assert run(server.address, lambda c: c.cluster()).ranks[1].experts == (2, 3)


@pytest.mark.parametrize("failure", [grpc.StatusCode.UNAVAILABLE, overloaded(0.001)], ids=["unavailable", "full"])
@pytest.mark.parametrize("act", [lambda c: c.generate("Hi").result(), lambda c: c.model()], ids=["stream", "unary"])
def test_a_call_without_an_answer_is_tried_again(
    server: ScriptedServer, run: Callable[..., Any], failure: Any, act: Act
) -> None:
    server.failures = [failure, failure]
    assert run(server.address, act) is not None
    assert len(server.requests) == 3


def test_attempts_are_bounded_and_the_last_error_is_typed(server: ScriptedServer, run: Callable[..., Any]) -> None:
    server.failures = [overloaded(0.001)] * 9
    with pytest.raises(sigmoe.Overloaded) as caught:
        run(server.address, lambda c: c.model())
    assert caught.value.retry_after_s == pytest.approx(0.001)
    assert len(server.requests) == FAST_RETRY.max_attempts


def test_a_hint_past_the_deadline_is_not_waited_for(server: ScriptedServer, run: Callable[..., Any]) -> None:
    server.failures = [overloaded(0.9)]
    with pytest.raises(sigmoe.Overloaded):
        run(server.address, lambda c: c.model(), timeout_s=0.8)


def test_a_started_stream_is_never_tried_again(server: ScriptedServer, run: Callable[..., Any]) -> None:
    server.fail_after_first_chunk = True
    with pytest.raises(sigmoe.Unavailable):
        run(server.address, lambda c: c.generate("Hi").result())
    assert len(server.requests) == 1


def test_violations_name_their_fields(server: ScriptedServer, run: Callable[..., Any]) -> None:
    server.failures = [bad_request("sampling.top_p", "2 is not in (0, 1]")]
    with pytest.raises(sigmoe.InvalidRequest, match=r"sampling\.top_p: 2 is not") as caught:
        run(server.address, lambda c: c.generate("Hi").result())
    assert caught.value.violations[0].field == "sampling.top_p"
    assert len(server.requests) == 1


def test_values_that_fit_no_wire_type_are_named_before_anything_is_sent(server: ScriptedServer) -> None:
    with Client(server.address) as client:
        with pytest.raises(ValueError, match=r"sampling\.top_k"):
            client.generate("Hi", Sampling(top_k=2**40))
        with pytest.raises(ValueError, match="prompt"):
            client.generate([2**40])
        with pytest.raises(ValueError, match=r"messages\[0\]"):
            client.chat([{"role": "user"}])
    assert server.requests == []


def test_nobody_there_is_unavailable(run: Callable[..., Any]) -> None:
    with pytest.raises(sigmoe.Unavailable):
        run("127.0.0.1:1", lambda c: c.model())


def test_leaving_a_stream_cancels_it(server: ScriptedServer) -> None:
    with Client(server.address) as client:
        chunks = iter(client.generate("Hi", Sampling(n=50)))
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        assert server.cancelled.wait(timeout=10)
