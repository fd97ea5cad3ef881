"""The gateway over real gRPC and simulated ranks: clients that leave, ranks that die, and too many of both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.gateway import Gateway
from cluster.gateway_config import GatewayConfig
from engine.simulated_runner import simulated_output
from scheduler.request import FinishReason, Request, SamplingParams, TokenDelta
from sigmoe.errors import Cancelled, DeadlineExceeded, Overloaded, ServerFailure, Unavailable
from sigmoe.v1 import inference_service_pb2 as pb
from sigmoe.v1 import inference_service_pb2_grpc, types_pb2
from tests.cluster.checkpoint_folder import VOCAB_SIZE
from tests.cluster.conftest import Start, World
from tests.cluster.grpc_calls import answers, failure, generate
from tests.cluster.simulated_executor import SimulatedExecutor

PROMPT = [5, 6, 7, 8, 9]


def expected(max_tokens: int, index: int = 0, **fields: Any) -> list[int]:
    params = SamplingParams(max_tokens=max_tokens, **{"temperature": 0.0, **fields})
    return list(simulated_output(PROMPT, params, vocab_size=VOCAB_SIZE, sequence_index=index))


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def health(world: World) -> int:
    check = health_pb2_grpc.HealthStub(world.channel).Check(health_pb2.HealthCheckRequest())
    return int((await check).status)


async def test_a_cancelled_call_is_cancelled_on_its_rank(world: World) -> None:
    world.executor.hold(after_steps=3)
    call = world.inference.Generate(generate(PROMPT, max_tokens=100))
    await call.read()
    call.cancel()
    await until(lambda: world.executor.cancelled)
    assert world.gateway.num_active == 0
    world.executor.go()
    await world.settled()


async def test_a_client_that_is_gone_is_cancelled(world: World) -> None:
    world.executor.hold()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        calls = [stub.Generate(generate(PROMPT, max_tokens=100, n=3)) for _ in range(5)]
        await until(lambda: len(world.executor.submitted) == 5)
        world.executor.hold(after_steps=5)
        await asyncio.gather(*(call.read() for call in calls))
    await until(lambda: len(world.executor.cancelled) == 5)
    world.executor.go()
    await world.settled()


async def test_a_deadline_reaches_the_rank_and_ends_the_call(world: World) -> None:
    world.executor.hold()
    error = await failure(world.inference.Generate(generate(PROMPT), timeout=0.2))
    assert isinstance(error, DeadlineExceeded)
    await until(lambda: world.executor.cancelled)
    ((_, request),) = world.executor.submitted
    assert request.deadline_s is not None and 0 < request.deadline_s <= 0.2
    world.executor.go()
    await world.settled()


@pytest.mark.parametrize(
    ("reason", "kind"), [(FinishReason.DEADLINE, DeadlineExceeded), (FinishReason.CANCELLED, Cancelled)]
)
async def test_endings_of_the_call_become_its_status(world: World, reason: FinishReason, kind: type[Exception]) -> None:
    world.executor.hold()
    call = world.inference.Generate(generate(PROMPT))
    await until(lambda: world.executor.submitted)
    request_id = world.executor.submitted[0][1].request_id
    world.executor.inject(0, TokenDelta(request_id=request_id, sequence_index=0, finish_reason=reason))
    assert isinstance(await failure(call), kind)
    world.executor.go()
    await world.executor.cancel(0, request_id)


async def test_an_error_of_one_sequence_is_its_ending_alone(world: World) -> None:
    world.executor.hold()
    call = world.inference.Generate(generate(PROMPT, n=2))
    await until(lambda: world.executor.submitted)
    request_id = world.executor.submitted[0][1].request_id
    end = TokenDelta(request_id=request_id, sequence_index=0, finish_reason=FinishReason.ERROR, error="NaN in logits")
    world.executor.inject(0, end)
    world.executor.go()
    found = await answers(call)
    assert found[0].error == "NaN in logits"
    assert found[1].token_ids == expected(8, index=1)


async def test_a_full_gateway_refuses_with_a_hint_and_recovers(start: Start) -> None:
    async with start(max_requests=2) as world:
        world.executor.hold()
        first = [asyncio.create_task(answers(world.inference.Generate(generate(PROMPT)))) for _ in range(2)]
        await until(lambda: world.gateway.num_active == 2)
        error = await failure(world.inference.Generate(generate(PROMPT)))
        assert isinstance(error, Overloaded)
        assert error.retry_after_s is not None and error.retry_after_s >= 0.1
        assert (await world.inference.GetModel(pb.GetModelRequest())).vocab_size == VOCAB_SIZE, "looking is free"
        world.executor.go()
        await asyncio.gather(*first)
        assert (await answers(world.inference.Generate(generate(PROMPT))))[0].token_ids == expected(8)
        await world.settled()


async def test_a_reader_that_stands_still_hinders_nobody(start: Start) -> None:
    async with start(max_context=4096) as world:
        slow = world.inference.Generate(generate(PROMPT, max_tokens=2000, logprobs=20))
        await until(lambda: world.executor.submitted)
        for _ in range(3):
            assert (await answers(world.inference.Generate(generate(PROMPT))))[0].token_ids == expected(8)
        await world.executor.idle()
        responses = [response async for response in slow]
        assert [i for response in responses for i in response.token_ids] == expected(2000)
        assert len(responses) < 2000, "what waited was sent together"
        assert max(response.ByteSize() for response in responses) < 2**20
        await world.settled()


@pytest.mark.parametrize("fields", [{}, {"stop": ["never there"]}])
async def test_a_stream_goes_on_when_its_rank_dies(start: Start, fields: dict[str, Any]) -> None:
    async with start(num_ranks=2) as world:
        world.executor.hold(after_steps=20)
        request = generate(PROMPT, n=3, seed=7, temperature=1.0, max_tokens=60, prompt_logprobs=0, logprobs=0, **fields)
        reading = asyncio.create_task(answers(world.inference.Generate(request)))
        await until(lambda: world.executor.is_holding)
        home = world.executor.submitted[0][0]
        await world.executor.kill(home)
        world.executor.go()
        found = await reading
        for index in range(3):
            assert found[index].token_ids == expected(60, index, seed=7, temperature=1.0)
            assert [entry.token.token_id for entry in found[index].logprobs] == found[index].token_ids
            usage = found[index].usage
            assert usage is not None
            assert (usage.prompt_tokens, usage.output_tokens) == (len(PROMPT), 60)
        assert [entry.token.token_id for entry in found[0].prompt_logprobs] == PROMPT[1:]
        resumed = [request for rank, request in world.executor.submitted if rank != home]
        assert any(request.resumed for request in resumed)
        assert {request.request_id for rank, request in world.executor.submitted if rank == home} <= {
            *world.executor.cancelled
        }
        assert all(request.sampling.num_prompt_logprobs is None for request in resumed if request.resumed)
        assert await health(world) == health_pb2.HealthCheckResponse.SERVING
        await world.settled()


async def test_what_a_lost_rank_drafted_is_counted_with_the_rest(start: Start) -> None:
    async with start(num_ranks=2) as world:
        world.executor.hold(after_steps=12)
        request = generate(PROMPT, max_tokens=60, draft=types_pb2.DRAFT_METHOD_NGRAM)
        reading = asyncio.create_task(answers(world.inference.Generate(request)))
        await until(lambda: world.executor.is_holding)
        ((home, _),) = world.executor.submitted
        before = world.executor.engines[home].stats().drafts
        await world.executor.kill(home)
        world.executor.go()
        (found,) = (await reading).values()
        behind = world.executor.engines[1 - home].stats().drafts
        assert found.token_ids == expected(60) and before.num_rounds > 0 and behind.num_rounds > 0
        assert found.usage is not None
        drafts, both = found.usage.drafts, before + behind
        assert (drafts.rounds, drafts.committed_tokens) == (both.num_rounds, both.num_committed)
        assert (tuple(drafts.drafted), tuple(drafts.accepted)) == (both.drafted, both.accepted)
        assert tuple(drafts.rounds_by_length) == both.rounds_by_length and sum(both.rounds_by_length) == both.num_rounds
        await world.settled()


async def test_streams_wait_for_the_next_epoch(start: Start) -> None:
    async with start(num_ranks=2) as world:
        world.executor.hold()
        calls = [world.inference.Generate(generate(PROMPT, max_tokens=60)) for _ in range(6)]
        reading = asyncio.gather(*map(answers, calls))
        await until(lambda: len(world.executor.submitted) == 6)
        world.executor.hold(after_steps=10)
        await until(lambda: world.executor.is_holding)
        await world.executor.kill(0, 1)
        await until(lambda: not world.gateway.loads)
        assert await health(world) == health_pb2.HealthCheckResponse.NOT_SERVING
        error = await failure(world.inference.Generate(generate(PROMPT)))
        assert isinstance(error, Unavailable) and "no rank serves" in str(error)
        world.executor.revive(0, 1)
        world.executor.go()
        for found in await reading:
            assert found[0].token_ids == expected(60)
            assert len(found[0].endings) == 1
        assert await health(world) == health_pb2.HealthCheckResponse.SERVING
        await world.settled()


async def test_streams_do_not_wait_for_ever(start: Start) -> None:
    async with start(resume_timeout_s=0.05) as world:
        world.executor.hold(after_steps=3)
        reading = asyncio.create_task(failure(world.inference.Generate(generate(PROMPT, max_tokens=60))))
        await until(lambda: world.executor.is_holding)
        await world.executor.kill(0)
        error = await reading
        assert isinstance(error, Unavailable) and "no rank served for 0.05 s" in str(error)
        await until(lambda: world.gateway.num_active == 0)


async def test_a_waiting_stream_keeps_its_deadline(start: Start) -> None:
    async with start() as world:
        world.executor.hold(after_steps=3)
        call = world.inference.Generate(generate(PROMPT, max_tokens=60), timeout=0.3)
        reading = asyncio.create_task(failure(call))
        await until(lambda: world.executor.is_holding)
        await world.executor.kill(0)
        assert isinstance(await reading, DeadlineExceeded)
        await until(lambda: world.gateway.num_active == 0)


async def test_a_request_that_seems_to_kill_ranks_is_not_passed_on_for_ever(start: Start) -> None:
    async with start(num_ranks=6) as world:
        world.executor.hold()
        reading = asyncio.create_task(failure(world.inference.Generate(generate(PROMPT))))
        for number in range(1, 5):
            await until(lambda number=number: len(world.executor.submitted) == number)
            await world.executor.kill(world.executor.submitted[-1][0])
        error = await reading
        assert isinstance(error, Unavailable) and "lost with 4 ranks" in str(error)
        assert len(world.executor.submitted) == 4


async def test_a_stop_string_found_as_the_rank_dies_is_the_end(start: Start) -> None:
    async with start() as world:
        world.executor.hold()
        call = world.inference.Generate(generate(PROMPT, stop=["a"]))
        await until(lambda: world.executor.submitted)
        request_id = world.executor.submitted[0][1].request_id
        (letter,) = (await world.inference.Tokenize(pb.TokenizeRequest(text="a"))).ids
        world.executor.inject(0, TokenDelta(request_id=request_id, sequence_index=0, token_ids=(letter,)))
        await world.executor.kill(0)
        found = await answers(call)
        assert (found[0].text, found[0].token_ids, len(found[0].endings)) == ("", [letter], 1)
        assert len(world.executor.submitted) == 1


async def test_when_reports_break_off_calls_end_and_the_gateway_lives(start: Start) -> None:
    async with start(resume_timeout_s=0.05) as world:
        world.executor.hold()
        reading = asyncio.create_task(failure(world.inference.Generate(generate(PROMPT))))
        await until(lambda: world.executor.submitted)
        world.executor.break_events(RuntimeError("the wire is cut"))
        assert isinstance(await reading, Unavailable)
        assert await health(world) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await world.inference.Tokenize(pb.TokenizeRequest(text="a"))).ids


async def test_reports_that_make_no_sense_end_their_call_alone(world: World) -> None:
    world.executor.hold()
    call = world.inference.Generate(generate(PROMPT))
    await until(lambda: world.executor.submitted)
    request_id = world.executor.submitted[0][1].request_id
    world.executor.inject(0, TokenDelta(request_id="nobody's", sequence_index=0, token_ids=(5,)))
    world.executor.inject(0, TokenDelta(request_id=request_id, sequence_index=1, token_ids=(5,)))
    assert isinstance(await failure(call), ServerFailure)
    world.executor.go()
    assert (await answers(world.inference.Generate(generate(PROMPT))))[0].token_ids == expected(8)


class BrokenSubmit(SimulatedExecutor):
    """Fails where the gateway does not expect it."""

    async def submit(self, rank: int, request: Request) -> None:
        raise ZeroDivisionError("a secret of the house")


async def test_an_unforeseen_error_names_the_request_and_the_gateway_lives(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = BrokenSubmit()
    async for _ in executor.start():
        pass
    gateway = Gateway(GatewayConfig(port=0), executor, model_dir)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await gateway.start()}") as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        error = await failure(stub.Generate(generate(PROMPT)))
        assert isinstance(error, ServerFailure)
        assert "secret" not in str(error)
        (record,) = [record for record in caplog.records if "event=call_failed" in record.getMessage()]
        assert record.getMessage().removeprefix("event=call_failed id=") in str(error)
        assert (await stub.Tokenize(pb.TokenizeRequest(text="a"))).ids
        await until(lambda: gateway.num_active == 0)
    await gateway.stop(0)
    await executor.stop()


async def test_stopping_lets_calls_end_within_the_grace(start: Start) -> None:
    async with start() as world:
        world.executor.hold(after_steps=3)
        reading = asyncio.create_task(answers(world.inference.Generate(generate(PROMPT))))
        await until(lambda: world.executor.is_holding)
        stopping = asyncio.create_task(world.gateway.stop(grace_s=30.0))
        await asyncio.sleep(0)
        world.executor.go()
        assert (await reading)[0].token_ids == expected(8)
        async with asyncio.timeout(10):
            await stopping


async def test_stopping_ends_what_takes_longer(start: Start) -> None:
    async with start() as world:
        world.executor.hold(after_steps=3)
        reading = asyncio.create_task(failure(world.inference.Generate(generate(PROMPT))))
        await until(lambda: world.executor.is_holding)
        async with asyncio.timeout(10):
            await world.gateway.stop(grace_s=0.05)
        error = await reading
        assert isinstance(error, Unavailable) and "stopping" in str(error)
        assert world.gateway.num_active == 0
        await world.gateway.stop(grace_s=0.05)
