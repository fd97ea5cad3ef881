"""What runs inside Ray's actors: thin shells, which `ray_executor` and `ray_deployment` make actors of.

A process that merely holds a handle imports this module too, so what is heavy is imported inside.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import ray

from cluster.epochs import EpochExecutor
from cluster.executor import GroupInfo, LoadProgress
from cluster.gateway_config import GatewayConfig
from cluster.ray_link import Members, RayLink
from engine.config import EngineConfig, StoreAddress

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class RankActor:
    """A `RankShell`. Calls arrive in the threads of its concurrency groups, in order within a group."""

    def __init__(self, rank: int) -> None:
        logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
        from cluster.rank_shell import RankShell

        self._shell = RankShell(rank)

    def host_store(self) -> StoreAddress:
        """See `RankShell`."""
        return self._shell.host_store(ray.util.get_node_ip_address())

    def build(self, config: EngineConfig) -> tuple[GroupInfo | None, str]:
        """See `RankShell`."""
        return self._shell.build(config)

    def progress(self, num_seen: int, timeout_s: float) -> list[LoadProgress]:
        """See `RankShell`."""
        return self._shell.progress(num_seen, timeout_s)

    def attach(self, gateway: str) -> None:
        """See `RankShell`."""
        self._shell.attach(gateway)

    def submit(self, gateway: str, frame: bytes) -> None:
        """See `RankShell`."""
        self._shell.submit(gateway, frame)

    def cancel(self, request_id: str) -> None:
        """See `RankShell`."""
        self._shell.cancel(request_id)

    def poll(self, gateway: str) -> tuple[bytes, str]:
        """See `RankShell`."""
        return self._shell.poll(gateway)

    def status(self) -> bytes:
        """See `RankShell`."""
        return self._shell.status()

    def ended(self, timeout_s: float) -> str:
        """See `RankShell`."""
        return self._shell.ended(timeout_s)

    def stop(self, timeout_s: float) -> None:
        """See `RankShell`."""
        self._shell.stop(timeout_s)


class GatewayActor:
    """The gateway in a process of its own: its work for clients takes nothing from the ranks or the controller."""

    def __init__(self, identity: str, config: GatewayConfig, model_dir: str) -> None:
        logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
        from cluster.gateway import Gateway

        self._identity = identity
        self._epochs = EpochExecutor()
        self._gateway = Gateway(config, self._epochs, Path(model_dir))
        self._link: RayLink | None = None
        self._over = asyncio.Event()

    async def listen(self) -> tuple[int, str]:
        """Take the address; returns the port, or why there is none."""
        from cluster.gateway import CannotListen

        try:
            return await self._gateway.listen(), ""
        except CannotListen as error:
            return 0, str(error)

    async def adopt(self, members: Members) -> None:
        """Serve through these ranks from now on."""
        before, self._link = self._link, RayLink(members, self._identity)
        await self._link.attach()
        self._epochs.adopt(self._link)
        if before is None:
            await self._gateway.serve()
        else:
            await before.stop()

    async def ended(self) -> None:
        """Wait until `stop`; whoever waits learns of a death, too."""
        await self._over.wait()

    async def is_over(self) -> bool:
        """Whether it was told to stop."""
        return self._over.is_set()

    async def stop(self, drain_s: float) -> None:
        """Let calls under way end for `drain_s`, then end them."""
        await self._gateway.stop(drain_s)
        self._over.set()
