"""The fleet over simulated ranks and real gRPC: growing, draining, losing replicas, and none at all."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.autoscale import ScalingPolicy
from cluster.board import ReplicaState
from cluster.executor import GroupStartError
from cluster.journal import EventKind
from cluster.request_part import Part
from engine.simulated_runner import simulated_output
from scheduler.request import SamplingParams
from sigmoe.errors import DeadlineExceeded, Unavailable
from sigmoe.v1 import admin_service_pb2 as admin
from tests.cluster.checkpoint_folder import VOCAB_SIZE
from tests.cluster.fleet_world import FleetWorld, fleet_world
from tests.cluster.grpc_calls import answers, failure, generate

PROMPT = [5, 6, 7, 8, 9]
EAGER = ScalingPolicy(
    max_replicas=3, sequences_per_replica=4, up_after_s=0.0, down_after_s=0.0, cool_down_s=0.0, idle_to_zero_s=0.0
)
FIXED = ScalingPolicy(min_replicas=2, max_replicas=2)
TO_ZERO = ScalingPolicy(min_replicas=0, up_after_s=0.0, down_after_s=0.0, cool_down_s=0.0, idle_to_zero_s=0.0)


def expected(max_tokens: int, index: int = 0) -> list[int]:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return list(simulated_output(PROMPT, params, vocab_size=VOCAB_SIZE, sequence_index=index))


def ask(world: FleetWorld, max_tokens: int = 8, priority: int = 0, **options: Any) -> Any:
    call = generate(PROMPT, max_tokens=max_tokens)
    call.priority = priority
    return world.inference.Generate(call, **options)


def has_submitted(world: FleetWorld, number: int) -> bool:
    return len(world.groups[0].executor.submitted) == number


async def snapshot(world: FleetWorld) -> admin.GetClusterResponse:
    response = await world.admin.GetCluster(admin.GetClusterRequest())
    assert isinstance(response, admin.GetClusterResponse)
    return response


async def grown(world: FleetWorld, number: int) -> None:
    """Press until so many serve, then tell of a load that changes nothing."""
    world.tell(number - 1, num_sequences=20, num_waiting=16, queue_s=9.0)
    await world.seen(EventKind.SERVING, replica=number - 1)
    world.tell(number, num_sequences=4 * number)
    await world.until(lambda: world.replicas is not None and world.replicas.picture.wanted == number)


async def test_the_fewest_start_together_and_share_the_work(model_dir: Path) -> None:
    async with fleet_world(model_dir, FIXED, num_ranks=2) as world:
        assert {(step.replica, step.stage) for step in world.progress} >= {(0, "ready"), (1, "ready")}
        for group in world.groups:
            group.executor.hold()
        calls = asyncio.gather(*(answers(ask(world)) for _ in range(8)))
        await world.until(lambda: sum(len(group.executor.submitted) for group in world.groups) == 8)
        assert [len(group.executor.submitted) for group in world.groups] == [4, 4]
        for group in world.groups:
            group.executor.go()
        assert all(found[0].token_ids == expected(8) for found in await calls)
        seen = await snapshot(world)
        assert [(rank.replica, rank.rank) for rank in seen.ranks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert [one.state for one in seen.fleet.replicas] == [admin.REPLICA_STATE_SERVING] * 2
        assert (seen.fleet.wanted, seen.fleet.min_replicas, seen.fleet.reason) == (2, 2, "")


async def test_pressure_brings_a_replica_that_takes_requests_when_it_is_warm(model_dir: Path) -> None:
    async with fleet_world(model_dir, EAGER) as world:
        world.gate.clear()
        world.tell(1, num_sequences=20, num_waiting=16, queue_s=9.0)
        await world.seen(EventKind.STARTING, replica=1)
        assert world.door.fleet.ranks() == (0,), "it is not warm yet"
        assert world.states() == {0: ReplicaState.SERVING, 1: ReplicaState.STARTING}
        world.gate.set()
        await world.seen(EventKind.SERVING, replica=1)
        assert world.door.fleet.ranks() == (0, 1)
        scale = await world.seen(EventKind.SCALE)
        assert "16 sequences waiting, the first for 9.0 s" in scale.reason
        assert (scale.numbers["before"], scale.numbers["wanted"], scale.numbers["waiting"]) == (1, 2, 16)


async def test_a_replica_that_goes_ends_its_requests_first_and_gets_no_more(model_dir: Path) -> None:
    async with fleet_world(model_dir, EAGER) as world:
        await grown(world, 2)
        for group in world.groups:
            group.executor.hold()
        calls = [asyncio.create_task(answers(ask(world))) for _ in range(4)]
        await world.until(lambda: all(len(group.executor.submitted) == 2 for group in world.groups))
        world.tell(2)  # calm: one is enough
        await world.seen(EventKind.DRAINING, replica=1)
        calls += [asyncio.create_task(answers(ask(world))) for _ in range(3)]
        await world.until(lambda: len(world.groups[0].executor.submitted) == 5)
        assert len(world.groups[1].executor.submitted) == 2 and not world.groups[1].is_stopped
        for group in world.groups:
            group.executor.go()
        for found in await asyncio.gather(*calls):
            assert found[0].token_ids == expected(8)
        await world.seen(EventKind.REMOVED, replica=1)
        assert world.groups[1].is_stopped and world.states() == {0: ReplicaState.SERVING}
        assert world.kinds(replica=1) == ["starting", "serving", "draining", "drained", "removed"]
        assert (await world.seen(EventKind.DRAINED, replica=1)).numbers["moved"] == 0


async def test_what_takes_longer_than_the_drain_moves_and_no_stream_breaks(model_dir: Path) -> None:
    async with fleet_world(model_dir, EAGER, drain_s=0.05) as world:
        await grown(world, 2)
        for group in world.groups:
            group.executor.hold(after_steps=5)
        calls = asyncio.gather(*(answers(ask(world, max_tokens=60)) for _ in range(2)))
        await world.until(lambda: all(group.executor.is_holding for group in world.groups))
        world.tell(2)
        drained = await world.seen(EventKind.DRAINED, replica=1)
        assert drained.numbers["moved"] == 1
        world.groups[0].executor.go()
        for found in await calls:
            assert found[0].token_ids == expected(60) and len(found[0].endings) == 1
        moved = [request for _, request in world.groups[0].executor.submitted if request.resumed]
        assert len(moved) == 1 and list(moved[0].resumed) == expected(60)[: len(moved[0].resumed)]


async def test_many_drains_are_not_held_against_a_request(model_dir: Path) -> None:
    async with fleet_world(model_dir, EAGER, drain_s=0.0) as world:
        world.groups[0].executor.hold()
        call = asyncio.create_task(answers(ask(world, max_tokens=30)))
        await world.until(lambda: world.groups[0].executor.submitted)
        for number in range(6):  # from replica to replica, each drained under it
            switchboard = world.door.gateway._ready().switchboard
            assert await switchboard.drain([0], 0.0) == 1, number
            await switchboard._join(0)
            await world.until(functools.partial(has_submitted, world, number + 2))
        world.groups[0].executor.go()
        assert (await call)[0].token_ids == expected(30)


async def test_a_dead_replica_s_streams_go_on_elsewhere_and_it_comes_back(model_dir: Path) -> None:
    async with fleet_world(model_dir, FIXED, num_ranks=2) as world:
        for group in world.groups:
            group.executor.hold(after_steps=6)
        calls = asyncio.gather(*(answers(ask(world, max_tokens=60)) for _ in range(4)))
        await world.until(lambda: all(group.executor.is_holding for group in world.groups))
        world.gate.clear()
        await world.groups[0].executor.kill(1)
        await world.seen(EventKind.LOST, replica=0)
        assert world.door.fleet.ranks() == (2, 3)
        world.groups[1].executor.go()
        for found in await calls:
            assert found[0].token_ids == expected(60) and len(found[0].endings) == 1
        assert world.states() == {0: ReplicaState.RECOVERING, 1: ReplicaState.SERVING}
        world.gate.set()
        await world.seen(EventKind.EPOCH, replica=0)
        assert world.door.fleet.ranks() == (0, 1, 2, 3)
        assert [group.epoch for group in world.groups] == [0, 1, 2]
        assert world.kinds(replica=1) == ["starting", "serving"], "the other one was left alone"


async def test_a_replica_given_up_is_replaced_and_the_last_one_is_the_end(model_dir: Path) -> None:
    async with fleet_world(model_dir, ScalingPolicy(min_replicas=2, max_replicas=2), max_restarts=0) as world:
        await world.groups[1].executor.kill(0)
        given_up = await world.seen(EventKind.GIVEN_UP, replica=1)
        assert given_up.reason == "killed by the test"
        assert world.over is not None and not world.over.done()
        await world.groups[0].executor.kill(0)
        assert await asyncio.wait_for(world.over, 30) == "killed by the test"


async def test_a_start_that_fails_leaves_the_others_serving_and_is_tried_again(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.replicas._RETRY_S", 0.0)
    async with fleet_world(model_dir, EAGER, failures={1: "no room for 1 rank"}) as world:
        world.tell(1, num_sequences=20, num_waiting=16, queue_s=9.0)
        failed = await world.seen(EventKind.START_FAILED, replica=1)
        assert failed.reason == "no room for 1 rank"
        await world.seen(EventKind.SERVING, replica=1)
        assert (await answers(ask(world)))[0].token_ids == expected(8)


async def test_a_first_replica_that_does_not_start_is_the_caller_s_matter(model_dir: Path) -> None:
    with pytest.raises(GroupStartError, match="no checkpoint"):
        async with fleet_world(model_dir, FIXED, failures={1: "no checkpoint"}):
            pytest.fail("it started")


async def test_a_start_is_called_off_when_its_load_is_gone(model_dir: Path) -> None:
    async with fleet_world(model_dir, EAGER) as world:
        world.gate.clear()
        world.tell(1, num_sequences=20, num_waiting=16, queue_s=9.0)
        await world.seen(EventKind.STARTING, replica=1)
        world.tell(1)
        await world.seen(EventKind.CALLED_OFF, replica=1)
        assert world.groups[1].is_stopped and world.states() == {0: ReplicaState.SERVING}


async def test_a_gateway_that_does_not_answer_changes_nothing(model_dir: Path) -> None:
    async with fleet_world(model_dir, EAGER) as world:
        await grown(world, 2)
        world.door.is_gone = True
        ticks = asyncio.get_running_loop().time() + 0.05
        await world.until(lambda: asyncio.get_running_loop().time() > ticks)
        assert len(world.states()) == 2
        world.door.is_gone = False
        world.tell(2)
        await world.seen(EventKind.REMOVED, replica=1)


async def at_zero(world: FleetWorld) -> None:
    await world.seen(EventKind.REMOVED, replica=0)
    assert not world.states() and world.door.fleet.ranks() == ()


async def test_to_zero_and_back_while_calls_wait(model_dir: Path) -> None:
    async with fleet_world(model_dir, TO_ZERO, wait_s=30.0) as world:
        await at_zero(world)
        health = health_pb2_grpc.HealthStub(world.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        world.gate.clear()
        calls = asyncio.gather(*(answers(ask(world)) for _ in range(5)))
        await world.seen(EventKind.STARTING, replica=0, times=2)
        scale = await world.seen(EventKind.SCALE, times=2)
        assert scale.reason.endswith("waiting and nothing serves") and scale.numbers["wanted"] == 1
        await world.until(lambda: world.door.gateway._ready().switchboard.num_homeless == 5)
        load = await world.door.gateway.load()
        assert (load.num_serving, load.num_sequences, load.num_waiting) == (0, 5, 5) and load.queue_s > 0
        world.gate.set()
        for found in await calls:
            assert found[0].token_ids == expected(8)
        await world.seen(EventKind.REMOVED, replica=0, times=2)


async def test_a_waiting_call_that_is_cancelled_is_forgotten(model_dir: Path) -> None:
    async with fleet_world(model_dir, TO_ZERO, wait_s=30.0) as world:
        await at_zero(world)
        world.gate.clear()
        call = ask(world)
        reading = asyncio.create_task(call.read())
        switchboard = world.door.gateway._ready().switchboard
        await world.until(lambda: switchboard.num_homeless == 1)
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await world.until(lambda: world.door.gateway.num_active == 0)
        assert switchboard.num_homeless == 0 and world.door.gateway.num_open_streams == 0
        await world.seen(EventKind.CALLED_OFF, replica=0)
        assert not any(group.executor.submitted for group in world.groups)


async def test_a_waiting_call_keeps_its_deadline(model_dir: Path) -> None:
    async with fleet_world(model_dir, TO_ZERO, wait_s=30.0) as world:
        await at_zero(world)
        world.gate.clear()
        assert isinstance(await failure(ask(world, timeout=0.2)), DeadlineExceeded)
        await world.until(lambda: world.door.gateway.num_active == 0)


async def test_a_call_does_not_wait_for_ever(model_dir: Path) -> None:
    async with fleet_world(model_dir, TO_ZERO, wait_s=0.05) as world:
        await at_zero(world)
        world.gate.clear()
        error = await failure(ask(world))
        assert isinstance(error, Unavailable) and "no rank served for 0.05 s" in str(error)


async def test_waiting_calls_learn_that_the_server_stops(model_dir: Path) -> None:
    async with fleet_world(model_dir, TO_ZERO, wait_s=30.0) as world:
        await at_zero(world)
        world.gate.clear()
        reading = asyncio.create_task(failure(ask(world)))
        await world.until(lambda: world.door.gateway._ready().switchboard.num_homeless == 1)
        await world.door.gateway.stop(0.05)
        error = await reading
        assert isinstance(error, Unavailable) and "stopping" in str(error)


async def test_the_load_is_measured_where_it_arises(model_dir: Path) -> None:
    async with fleet_world(model_dir, FIXED, slo_first_token_s=1000.0, slo_token_s=0.0) as world:
        gateway = world.door.gateway
        assert (await gateway.load()).attainment is None
        await answers(ask(world))
        assert (await gateway.load()).attainment == 0.0, "no further token comes in no time"
        for group in world.groups:
            group.executor.hold(after_steps=1)
        calls = [asyncio.create_task(answers(ask(world))) for _ in range(2)]
        await world.until(lambda: all(group.executor.is_holding for group in world.groups))
        load = await gateway.load()
        assert (load.num_serving, load.num_sequences, load.num_waiting) == (2, 2, 0) and load.kv_use > 0
        assert load.queue_s == 0.0
        for group in world.groups:
            group.executor.hold()
        calls += [asyncio.create_task(answers(ask(world))) for _ in range(2)]
        await world.until(lambda: sum(len(group.executor.submitted) for group in world.groups) == 5)
        load = await gateway.load()
        assert (load.num_sequences, load.num_waiting) == (4, 2) and 0 < load.queue_s < 30
        for group in world.groups:
            group.executor.go()
        await asyncio.gather(*calls)
        load = await gateway.load()
        assert (load.num_sequences, load.num_ended, load.kv_use) == (0, 5, 0.0)


@pytest.mark.parametrize("counts", [False, True])
async def test_the_background_asks_for_replicas_only_where_it_is_told_to(model_dir: Path, counts: bool) -> None:
    fixed = dataclasses.replace(FIXED, min_replicas=1, max_replicas=1)
    async with fleet_world(model_dir, fixed, slo_token_s=0.0, background_counts=counts) as world:
        gateway, executor = world.door.gateway, world.groups[0].executor
        await answers(ask(world, priority=-1))
        assert (await gateway.load()).attainment == (0.0 if counts else None), "nothing was promised to it"
        executor.hold(after_steps=1)
        calls = [asyncio.create_task(answers(ask(world, priority=-1)))]
        await world.until(lambda: executor.is_holding and all(part.has_begun for part in parts(world)))
        load = await gateway.load()
        assert (load.num_sequences, load.num_background) == ((1, 0) if counts else (0, 1))
        assert (load.kv_use > 0) == counts
        executor.hold()
        calls += [asyncio.create_task(answers(ask(world, priority=-1))) for _ in range(3)]
        calls += [asyncio.create_task(answers(ask(world))) for _ in range(2)]
        await world.until(lambda: len(executor.submitted) == 7)
        load = await gateway.load()
        # Five wait. The four of the background are taken to be among them, so one of the foreground is.
        assert (load.num_sequences, load.num_background, load.num_waiting) == ((6, 0, 5) if counts else (2, 4, 1))
        assert load.queue_s > 0
        executor.go()
        await asyncio.gather(*calls)
        assert (await gateway.load()).num_ended == (7 if counts else 2)


def parts(world: FleetWorld) -> tuple[Part, ...]:
    return world.door.gateway._ready().switchboard.parts


async def events(call: Any, number: int) -> list[admin.FleetEvent]:
    found: list[admin.FleetEvent] = []
    async with asyncio.timeout(30):
        async for response in call:
            found += response.events
            if len(found) >= number:
                break
    return found


async def test_events_are_read_and_followed_over_the_wire(model_dir: Path) -> None:
    async with fleet_world(model_dir, EAGER) as world:
        told = await events(world.admin.ListEvents(admin.ListEventsRequest()), 10)
        assert [event.kind for event in told] == ["starting", "serving"] and [event.id for event in told] == [1, 2]
        assert told[1].replica == 0 and told[1].HasField("replica") and told[1].numbers["seconds"] >= 0
        following = world.admin.ListEvents(admin.ListEventsRequest(after_id=2, follow=True))
        reading = asyncio.create_task(events(following, 3))
        await grown(world, 2)
        told = await reading
        assert [event.kind for event in told[:3]] == ["scale", "starting", "serving"]
        assert not told[0].HasField("replica") and told[0].numbers["waiting"] == 16 and told[0].time.seconds > 0
        following.cancel()
        staying = world.admin.ListEvents(admin.ListEventsRequest(follow=True))
        await events(staying, 1)
        async with asyncio.timeout(10):
            await world.door.gateway.stop(5.0)  # who follows does not hold it up
