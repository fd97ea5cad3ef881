"""A gateway over replicas of simulated ranks that a real `Replicas` starts, drains and stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from cluster.autoscale import Load, ScalingPolicy
from cluster.board import Board, FleetPicture, ReplicaState
from cluster.door import FleetRules
from cluster.executor import GroupStartError, LoadProgress
from cluster.fleet import Fleet
from cluster.gateway import Gateway
from cluster.gateway_config import GatewayConfig
from cluster.journal import EventKind, FleetEvent, Journal
from cluster.replicas import Replicas
from sigmoe.v1 import admin_service_pb2_grpc, inference_service_pb2_grpc
from tests.cluster.checkpoint_folder import END, ROLE_END
from tests.cluster.simulated_executor import SimulatedExecutor

DEADLINE_S = 30.0  # of whatever a test waits for: only a broken program gets there


class SimulatedGroup:
    """See `cluster.controller.Group`. `gate` keeps it from becoming ready, `failure` from starting at all."""

    def __init__(self, epoch: int, num_ranks: int, gate: asyncio.Event, failure: str) -> None:
        self.epoch = epoch
        self.executor = SimulatedExecutor(num_ranks=num_ranks, eos=(END, ROLE_END), max_context=512)
        self.executor.epoch = epoch
        self.is_stopped = False
        self._gate = gate
        self._failure = failure
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> AsyncIterator[LoadProgress]:
        yield LoadProgress(rank=0, stage="starting")
        await self._gate.wait()
        if self._failure:
            raise GroupStartError(self._failure)
        async for progress in self.executor.start():
            yield progress

    def lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    async def ended(self) -> str:
        return await asyncio.shield(self._lost)

    async def stop(self) -> None:
        self.is_stopped = True
        await self.executor.stop()


class SimulatedDoor:
    """See `cluster.door.Door`; `told` replaces the measured load."""

    def __init__(self, config: GatewayConfig, model_dir: Path, journal: Journal) -> None:
        self.fleet = Fleet(lambda replica, reason: self.groups[replica].lose(reason))
        self.gateway = Gateway(config, self.fleet, model_dir, board=Board(journal))
        self.groups: dict[int, SimulatedGroup] = {}
        self.told: Load | None = None
        self.is_gone = False

    async def adopt(self, replica: int, group: SimulatedGroup) -> None:
        self.groups[replica] = group
        self.fleet.adopt(replica, group.executor)

    async def drain(self, replica: int, limit_s: float) -> int:
        return await self.gateway.drain(self.fleet.ranks_of(replica), limit_s)

    async def release(self, replica: int) -> None:
        self.groups.pop(replica, None)
        self.fleet.release(replica)

    async def load(self) -> Load:
        if self.is_gone:
            raise ConnectionError("the gateway does not answer")
        return self.told or await self.gateway.load()

    async def post(self, picture: FleetPicture) -> None:
        self.gateway.board.picture = picture


@dataclass
class FleetWorld:
    """Everything that a test of the fleet looks at."""

    door: SimulatedDoor
    journal: Journal
    channel: grpc.aio.Channel
    inference: Any
    admin: Any
    groups: list[SimulatedGroup] = field(default_factory=list)  # every one ever made
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # open, unless a test closes it
    failures: dict[int, str] = field(default_factory=dict)  # epoch -> why it does not start
    replicas: Replicas[SimulatedGroup] | None = None
    over: asyncio.Task[str] | None = None
    progress: list[LoadProgress] = field(default_factory=list)

    @property
    def events(self) -> list[FleetEvent]:
        return list(self.journal.after(0))

    def kinds(self, replica: int | None = None) -> list[str]:
        return [event.kind.value for event in self.events if event.replica == replica]

    def tell(self, num_serving: int, **load: Any) -> None:
        self.door.told = Load(num_serving=num_serving, **load)

    def states(self) -> dict[int, ReplicaState]:
        assert self.replicas is not None
        return {replica.number: replica.state for replica in self.replicas.picture.replicas}

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.001)

    async def seen(self, kind: EventKind, replica: int | None = None, times: int = 1) -> FleetEvent:
        """The event, once it has happened so many times."""
        found: list[FleetEvent] = []

        def is_there() -> bool:
            found[:] = [event for event in self.events if event.kind is kind and event.replica == replica]
            return len(found) >= times

        await self.until(is_there)
        return found[times - 1]


@asynccontextmanager
async def fleet_world(
    model_dir: Path,
    policy: ScalingPolicy,
    *,
    num_ranks: int = 1,
    max_restarts: int = 3,
    drain_s: float = DEADLINE_S,
    failures: dict[int, str] | None = None,
    **gateway: Any,
) -> AsyncIterator[FleetWorld]:
    """A serving fleet; `gateway` are keys of GatewayConfig."""
    journal = Journal(time.time)
    door = SimulatedDoor(GatewayConfig(port=0, **gateway), model_dir, journal)
    port = await door.gateway.listen()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    inference = inference_service_pb2_grpc.InferenceServiceStub(channel)
    world = FleetWorld(door, journal, channel, inference, admin_service_pb2_grpc.AdminServiceStub(channel))
    world.gate.set()
    world.failures = failures or {}

    def make(epoch: int) -> SimulatedGroup:
        world.groups.append(SimulatedGroup(epoch, num_ranks, world.gate, world.failures.get(epoch, "")))
        return world.groups[-1]

    rules = FleetRules(policy=policy, max_restarts=max_restarts, drain_s=drain_s, interval_s=0.001)
    world.replicas = Replicas(make, door, rules, journal)
    try:
        world.progress = [progress async for progress in world.replicas.start()]
        await door.gateway.serve()
        world.over = asyncio.create_task(world.replicas.run())
        yield world
    finally:
        await channel.close()
        await door.gateway.stop(0.0)
        if world.over is not None:
            world.over.cancel()
            await asyncio.wait([world.over])
        await world.replicas.stop()
        await door.fleet.stop()
        assert all(group.is_stopped for group in world.groups), "a group was left running"
