"""Ten thousand requests at once, on one core and simulated ranks."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest

from cluster.request_part import Part
from cluster.sequence_stream import SequenceStream
from cluster.stream import RequestStream
from engine.simulated_runner import simulated_output
from scheduler.request import SamplingParams
from sigmoe.v1 import inference_service_pb2 as pb
from tests.cluster.checkpoint_folder import VOCAB_SIZE
from tests.cluster.conftest import Start, World
from tests.cluster.grpc_calls import answers, generate

NUM_CALLS = 10_000
PROMPT = [5, 6, 7, 8, 9]
EXPECTED = list(simulated_output(PROMPT, SamplingParams(max_tokens=4, temperature=0.0), vocab_size=VOCAB_SIZE))


async def outcome(world: World) -> str:
    """The status of one call, whose answer must be right."""
    try:
        found = await answers(world.inference.Generate(generate(PROMPT, max_tokens=4)))
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    assert found[0].token_ids == EXPECTED
    return "OK"


async def test_as_many_as_are_admitted_are_answered_and_the_others_told(start: Start) -> None:
    async with start(max_requests=100, num_ranks=2) as world:
        world.executor.hold()
        calls = [asyncio.create_task(outcome(world)) for _ in range(2000)]
        async with asyncio.timeout(120):
            while sum(call.done() for call in calls) < 1900:
                await asyncio.sleep(0.01)
        assert len(world.executor.submitted) == world.gateway.num_active == 100
        assert (await world.inference.GetModel(pb.GetModelRequest())).vocab_size == VOCAB_SIZE
        world.executor.go()
        outcomes = await asyncio.gather(*calls)
        assert outcomes.count("OK") == 100
        assert outcomes.count("RESOURCE_EXHAUSTED") == 1900
        await world.settled()


@pytest.mark.slow
async def test_ten_thousand_wait_their_turn_and_leave_nothing_behind(start: Start) -> None:
    async with start(max_requests=NUM_CALLS, num_ranks=2) as world:
        outcomes = await asyncio.gather(*(outcome(world) for _ in range(NUM_CALLS)))
        assert outcomes.count("OK") == NUM_CALLS
        await world.settled()
        assert world.gateway.num_open_streams == 0
        gc.collect()
        left = [one for one in gc.get_objects() if type(one) in (RequestStream, SequenceStream, Part)]
        assert len(left) < 10, "streams outlive their calls"
