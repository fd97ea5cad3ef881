"""Serving without Ray: the gateway in this process, over ranks in this process or beside it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

from cluster.controller import Controller
from cluster.epochs import EpochExecutor
from cluster.executor import GroupInfo, GroupStatus, LoadProgress
from cluster.gateway import Gateway
from cluster.gateway_config import GatewayConfig
from cluster.local_executor import LocalExecutor
from engine.config import EngineConfig


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


class LocalDeployment:
    """See `cluster.deployment.Deployment`."""

    def __init__(self, engine: EngineConfig, gateway: GatewayConfig, max_restarts: int) -> None:
        self._epochs = EpochExecutor(self._lose)
        self._gateway = Gateway(gateway, self._epochs, Path(engine.model_dir))
        self._group: LocalGroup | None = None
        self._port = 0
        self._controller = Controller(
            lambda epoch: LocalGroup(dataclasses.replace(engine, epoch=epoch)), self._adopt, max_restarts=max_restarts
        )

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Deployment`."""
        self._port = await self._gateway.listen()
        async for progress in self._controller.start():
            yield progress
        await self._gateway.serve()

    @property
    def port(self) -> int:
        """See `Deployment`."""
        return self._port

    def info(self) -> GroupInfo:
        """See `Deployment`."""
        return self._epochs.info()

    async def status(self) -> GroupStatus:
        """See `Deployment`."""
        return await self._epochs.status()

    async def ended(self) -> str:
        """See `Deployment`."""
        return await self._controller.run()

    async def stop(self, drain_s: float) -> None:
        """See `Deployment`."""
        await self._gateway.stop(drain_s)
        await self._controller.stop()
        await self._epochs.stop()

    async def _adopt(self, group: LocalGroup) -> None:
        self._group = group
        self._epochs.adopt(group.executor)

    def _lose(self, reason: str) -> None:
        if self._group is not None:
            self._group.lose(reason)
