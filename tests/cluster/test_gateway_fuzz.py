"""Whatever clients send: a clean answer or a clean status, and nothing left behind."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigmoe.v1 import inference_service_pb2 as pb
from sigmoe.v1 import types_pb2
from tests.cluster.conftest import Start, World, started_world

CLEAN = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED}

texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "\x00", "<|role_end|>", "{{ x }}", "\ud7ff\U0010ffff", "a" * 2000, "\u202e\u200b", "%s%n", "哮喘"]
    ),
)
int32s = st.integers(-(2**31), 2**31 - 1)
ids = st.lists(st.integers(0, 511) | int32s, max_size=12)
good_ids = st.lists(st.integers(0, 511), min_size=1, max_size=12)
floats = st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, float("nan"), float("inf"), -0.0, 1e-45])


def maybe(good: st.SearchStrategy[Any], any_: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly absent or good, so that some requests pass the checks."""
    return st.one_of(st.none(), st.none(), good, good, any_)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": maybe(st.integers(1, 30), int32s),
    "min_tokens": maybe(st.just(0), int32s),
    "temperature": maybe(st.floats(0, 2, width=32), floats),
    "top_k": maybe(st.integers(0, 600), int32s),
    "top_p": maybe(st.just(0.5), floats),
    "min_p": maybe(st.just(0.5), floats),
    "repetition_penalty": maybe(st.just(1.5), floats),
    "presence_penalty": maybe(st.just(1.5), floats),
    "frequency_penalty": maybe(st.just(1.5), floats),
    "seed": maybe(st.integers(0, 2**64 - 1), st.just(0)),
    "n": maybe(st.integers(1, 4), int32s),
    "ignore_eos": maybe(st.booleans(), st.booleans()),
    "logprobs": maybe(st.integers(0, 3), int32s),
    "prompt_logprobs": maybe(st.integers(0, 3), int32s),
    "logit_bias": maybe(st.just({5: 1.0}), st.dictionaries(int32s, floats, max_size=3)),
    "stop_token_ids": maybe(st.just([5]), ids),
    "stop": maybe(st.just(["a", "bc"]), st.lists(texts, max_size=3)),
}
samplings = st.fixed_dictionaries(FIELDS).map(
    lambda fields: types_pb2.SamplingParams(**{name: value for name, value in fields.items() if value is not None})
)
priorities = st.sampled_from([0, 0, 0, 100, -100, 101, -(2**31)])
prompts = st.one_of(
    st.builds(lambda text: {"text": text}, texts),
    st.builds(lambda found: {"tokens": types_pb2.TokenIds(ids=found)}, good_ids | ids),
    st.just({}),
)
messages = st.lists(
    st.builds(
        types_pb2.ChatMessage,
        role=st.sampled_from(["user", "user", "system", "assistant", "tool", "evil"]),
        content=texts,
    ),
    max_size=4,
)
requests: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        lambda prompt, **fields: pb.GenerateRequest(**prompt, **fields),
        prompts, sampling=samplings, priority=priorities, return_token_ids=st.booleans(),
    ),
    st.builds(pb.ChatRequest, messages=messages, sampling=samplings, priority=priorities),
    st.builds(
        lambda prompt, **fields: pb.ScoreRequest(**prompt, **fields),
        prompts, top_logprobs=st.integers(0, 3) | int32s, priority=priorities,
    ),
    st.builds(pb.TokenizeRequest, text=texts),
    st.builds(lambda turns: pb.TokenizeRequest(messages=pb.ChatMessages(messages=turns)), messages),
    st.builds(pb.DetokenizeRequest, ids=ids, skip_special_tokens=st.booleans()),
    st.builds(pb.GetModelRequest),
)  # fmt: skip


class LastingWorld:
    """One gateway on a loop of its own, for as many examples as hypothesis likes."""

    def __init__(self, start: Start) -> None:
        self._runner = asyncio.Runner()
        self._entered = start()
        self.world = self._runner.run(self._entered.__aenter__())
        self.statuses: set[grpc.StatusCode] = set()

    def send(self, calls: list[tuple[Any, bool]]) -> None:
        self._runner.run(self._send(calls))

    def close(self) -> None:
        self._runner.run(self._entered.__aexit__(None, None, None))
        self._runner.close()

    async def _send(self, calls: list[tuple[Any, bool]]) -> None:
        async with asyncio.timeout(30):
            found = await asyncio.gather(*(_status(self.world, request, is_cut) for request, is_cut in calls))
        self.statuses |= set(found)
        assert set(found) <= CLEAN
        await self.world.settled()


async def _status(world: World, request: Any, is_cut: bool) -> grpc.StatusCode:
    name = type(request).__name__.removesuffix("Request")
    call = getattr(world.inference, name)(request)
    try:
        if name in ("Generate", "Chat"):
            await _read(call, is_cut)
        else:
            await call
    except grpc.aio.AioRpcError as error:
        assert error.code() in CLEAN, error
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            assert error.trailing_metadata(), "no field violations"
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED
    code: grpc.StatusCode = await call.code()
    return code


async def _read(call: Any, is_cut: bool) -> None:
    endings: set[int] = set()
    async for response in call:
        assert response.index not in endings, "a response after the last"
        if response.finish_reason:
            endings.add(response.index)
        if is_cut:
            call.cancel()


@pytest.fixture(scope="module")
def lasting(model_dir: Path) -> Iterator[LastingWorld]:
    world = LastingWorld(functools.partial(started_world, model_dir))
    yield world
    world.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(calls=st.lists(st.tuples(requests, st.integers(0, 9).map(lambda number: number == 0)), min_size=1, max_size=4))
def test_any_requests_leave_a_clean_gateway(lasting: LastingWorld, calls: list[tuple[Any, bool]]) -> None:
    lasting.send(calls)


def test_the_requests_were_of_every_kind(lasting: LastingWorld) -> None:
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= lasting.statuses
