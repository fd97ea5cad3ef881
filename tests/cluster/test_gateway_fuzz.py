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

from sigmoe.v1 import admin_service_pb2, types_pb2
from sigmoe.v1 import inference_service_pb2 as pb
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


# Field by field: what is allowed, and anything.
FIELDS: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "max_tokens": (st.integers(1, 30), int32s),
    "min_tokens": (st.just(0), int32s),
    "temperature": (st.floats(0, 2, width=32), floats),
    "top_k": (st.integers(0, 600), int32s),
    "top_p": (st.just(0.5), floats),
    "min_p": (st.just(0.5), floats),
    "repetition_penalty": (st.just(1.5), floats),
    "presence_penalty": (st.just(1.5), floats),
    "frequency_penalty": (st.just(1.5), floats),
    "seed": (st.integers(0, 2**64 - 1), st.just(0)),
    "n": (st.integers(1, 4), int32s),
    "ignore_eos": (st.booleans(), st.booleans()),
    "logprobs": (st.integers(0, 3), int32s),
    "prompt_logprobs": (st.integers(0, 3), int32s),
    "logit_bias": (st.just({5: 1.0}), st.dictionaries(int32s, floats, max_size=3)),
    "stop_token_ids": (st.just([5]), ids),
    "stop": (st.just(["a", "bc"]), st.lists(texts, max_size=3)),
}


def samplings(*, is_good: bool) -> st.SearchStrategy[types_pb2.SamplingParams]:
    """Any of the fields, each allowed or, unless `is_good`, anything."""
    optional = {name: good if is_good else good | any_ for name, (good, any_) in FIELDS.items()}
    return st.fixed_dictionaries({}, optional=optional).map(lambda fields: types_pb2.SamplingParams(**fields))


def prompts(*, is_good: bool) -> st.SearchStrategy[dict[str, Any]]:
    tokens = (good_ids if is_good else ids).map(lambda found: {"tokens": types_pb2.TokenIds(ids=found)})
    text = (st.text("abc 1", min_size=1, max_size=9) if is_good else texts).map(lambda found: {"text": found})
    return tokens | text if is_good else tokens | text | st.just({})


def messages(*, is_good: bool) -> st.SearchStrategy[list[types_pb2.ChatMessage]]:
    roles = ["user", "system", "assistant", "tool", *([] if is_good else ["evil", ""])]
    content = st.text("abc 1", max_size=9) if is_good else texts
    turn = st.builds(types_pb2.ChatMessage, role=st.sampled_from(roles), content=content)
    return st.lists(turn, min_size=is_good, max_size=3)


def calls_of(*, is_good: bool) -> st.SearchStrategy[Any]:
    priorities = st.sampled_from([0, 100, -100] if is_good else [0, 101, -(2**31)])
    sampling = samplings(is_good=is_good)
    return st.one_of(
        st.builds(
            lambda prompt, **fields: pb.GenerateRequest(**prompt, **fields),
            prompts(is_good=is_good), sampling=sampling, priority=priorities, return_token_ids=st.booleans(),
        ),
        st.builds(pb.ChatRequest, messages=messages(is_good=is_good), sampling=sampling, priority=priorities),
        st.builds(
            lambda prompt, **fields: pb.ScoreRequest(**prompt, **fields),
            prompts(is_good=is_good), top_logprobs=st.integers(0, 3) if is_good else int32s, priority=priorities,
        ),
        st.builds(pb.TokenizeRequest, text=texts),
        messages(is_good=is_good).map(lambda turns: pb.TokenizeRequest(messages=pb.ChatMessages(messages=turns))),
        st.builds(pb.DetokenizeRequest, ids=ids, skip_special_tokens=st.booleans()),
        st.builds(pb.GetModelRequest),
    )  # fmt: skip


requests = calls_of(is_good=True) | calls_of(is_good=False)


class LastingWorld:
    """One gateway on a loop of its own, for as many examples as hypothesis likes."""

    def __init__(self, start: Start) -> None:
        self._runner = asyncio.Runner()
        self._entered = start()
        self.world = self._runner.run(self._entered.__aenter__())
        self.statuses: set[grpc.StatusCode] = set()
        self.num_streamed = 0  # streams that ended well

    def send(self, calls: list[tuple[Any, bool]]) -> None:
        self._runner.run(self._send(calls))

    def ended(self) -> dict[str, int]:
        """Calls by the status that the server itself saw."""
        call = self.world.admin.GetCluster(admin_service_pb2.GetClusterRequest())
        return dict(self._runner.run(_awaited(call)).gateway.ended_requests)

    def close(self) -> None:
        self._runner.run(self._entered.__aexit__(None, None, None))
        self._runner.close()

    async def _send(self, calls: list[tuple[Any, bool]]) -> None:
        async with asyncio.timeout(30):
            found = await asyncio.gather(*(_status(self.world, request, is_cut) for request, is_cut in calls))
        self.statuses |= set(found)
        is_streamed = [isinstance(request, pb.GenerateRequest | pb.ChatRequest) for request, _ in calls]
        self.num_streamed += list(zip(is_streamed, found, strict=True)).count((True, grpc.StatusCode.OK))
        assert set(found) <= CLEAN
        await self.world.settled()


async def _awaited(call: Any) -> Any:
    return await call


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


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(calls=st.lists(st.tuples(requests, st.integers(0, 9).map(lambda number: number == 0)), min_size=1, max_size=4))
def test_any_requests_leave_a_clean_gateway(lasting: LastingWorld, calls: list[tuple[Any, bool]]) -> None:
    lasting.send(calls)


def test_the_requests_were_of_every_kind(lasting: LastingWorld) -> None:
    if not lasting.statuses:
        pytest.skip("it looks at what the test before it did")
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= lasting.statuses
    assert lasting.num_streamed > 50, "hardly a stream passed the checks"
    assert set(lasting.ended()) <= {"OK", "INVALID_ARGUMENT", "CANCELLED"}
