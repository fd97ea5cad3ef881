"""Serving without Ray: the gateway in this process, over ranks in this process or beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

from cluster.autoscale import Load
from cluster.board import Board, FleetPicture
from cluster.door import FleetRules
from cluster.executor import GroupInfo, GroupStatus, LoadProgress
from cluster.fleet import Fleet
from cluster.gateway import Gateway
from cluster.gateway_config import GatewayConfig
from cluster.journal import Journal
from cluster.local_executor import LocalExecutor
from cluster.replicas import Replicas
from engine.config import EngineConfig
from sigmoe.errors import Unavailable


class LocalGroup:
    """One epoch's ranks; see `cluster.controller.Group`."""

    def __init__(self, config: EngineConfig) -> None:
        self.executor = LocalExecutor(config, config.group_size)
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def start(self) -> AsyncIterator[LoadProgress]:
        """See `Group`."""
        return self.executor.start()

    def lose(self, reason: str) -> None:
        """Told by whoever listens to the executor's events, which one alone may do."""
        if not self._lost.done():
            self._lost.set_result(reason)

    async def ended(self) -> str:
        """See `Group`."""
        return await asyncio.shield(self._lost)

    async def stop(self) -> None:
        """See `Group`."""
        await self.executor.stop()


class LocalDoor:
    """See `cluster.door.Door`: a gateway in this process."""

    def __init__(self, config: GatewayConfig, model_dir: Path, journal: Journal) -> None:
        self.fleet = Fleet(self._lose)
        self.gateway = Gateway(config, self.fleet, model_dir, board=Board(journal))
        self._groups: dict[int, LocalGroup] = {}

    async def adopt(self, replica: int, group: LocalGroup) -> None:
        """See `Door`."""
        self._groups[replica] = group
        self.fleet.adopt(replica, group.executor)

    async def drain(self, replica: int, limit_s: float) -> int:
        """See `Door`."""
        try:
            return await self.gateway.drain(self.fleet.ranks_of(replica), limit_s)
        except Unavailable as error:
            raise ConnectionError(str(error)) from None

    async def release(self, replica: int) -> None:
        """See `Door`."""
        self._groups.pop(replica, None)
        self.fleet.release(replica)

    async def load(self) -> Load:
        """See `Door`."""
        try:
            return await self.gateway.load()
        except Unavailable as error:
            raise ConnectionError(str(error)) from None

    async def post(self, picture: FleetPicture) -> None:
        """See `Door`; the journal is shared."""
        self.gateway.board.picture = picture

    def _lose(self, replica: int, reason: str) -> None:
        self._groups[replica].lose(reason)


class LocalDeployment:
    """See `cluster.deployment.Deployment`."""

    def __init__(self, engine: EngineConfig, gateway: GatewayConfig, rules: FleetRules) -> None:
        journal = Journal(time.time)
        self._door = LocalDoor(gateway, Path(engine.model_dir), journal)
        self._port = 0
        self._replicas = Replicas(
            lambda epoch: LocalGroup(dataclasses.replace(engine, epoch=epoch)), self._door, rules, journal
        )

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Deployment`."""
        self._port = await self._door.gateway.listen()
        async for progress in self._replicas.start():
            yield progress
        await self._door.gateway.serve()

    @property
    def port(self) -> int:
        """See `Deployment`."""
        return self._port

    def info(self) -> GroupInfo:
        """See `Deployment`."""
        return self._door.fleet.info()

    async def status(self) -> GroupStatus:
        """See `Deployment`."""
        return await self._door.fleet.status()

    async def ended(self) -> str:
        """See `Deployment`."""
        return await self._replicas.run()

    async def stop(self, drain_s: float) -> None:
        """See `Deployment`."""
        await self._door.gateway.stop(drain_s)
        await self._replicas.stop()
        await self._door.fleet.stop()
