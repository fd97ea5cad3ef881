"""What runs inside Ray's actors: thin shells, which `ray_executor` and `ray_deployment` make actors of.

A process that merely holds a handle imports this module too, so what is heavy is imported inside.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import ray

from cluster.autoscale import Load
from cluster.board import FleetPicture
from cluster.executor import GroupInfo, LoadProgress
from cluster.fleet import Fleet
from cluster.gateway_config import GatewayConfig
from cluster.journal import FleetEvent
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
        self._fleet = Fleet()
        self._gateway = Gateway(config, self._fleet, Path(model_dir))
        self._links: dict[int, RayLink] = {}
        self._is_serving = False
        self._over = asyncio.Event()

    async def listen(self) -> tuple[int, str]:
        """Take the address; returns the port, or why there is none."""
        from cluster.gateway import CannotListen

        try:
            return await self._gateway.listen(), ""
        except CannotListen as error:
            return 0, str(error)

    async def adopt(self, replica: int, members: Members) -> None:
        """Serve through these ranks, as the replica's, from now on."""
        before, link = self._links.get(replica), RayLink(members, self._identity)
        await link.attach()
        self._links[replica] = link
        self._fleet.adopt(replica, link)
        await self._serve()
        if before is not None:
            await before.stop()

    async def wait(self, info: GroupInfo) -> None:
        """Serve without any rank for now: calls wait for one."""
        self._fleet.introduce(info)
        await self._serve()

    async def release(self, replica: int) -> None:
        """Forget a replica."""
        self._fleet.release(replica)
        link = self._links.pop(replica, None)
        if link is not None:
            await link.stop()

    async def drain(self, replica: int, limit_s: float) -> int:
        """See `cluster.door.Door`."""
        return await self._gateway.drain(self._fleet.ranks_of(replica), limit_s)

    async def load(self) -> Load:
        """See `cluster.door.Door`."""
        return await self._gateway.load()

    async def post(self, picture: FleetPicture, events: tuple[FleetEvent, ...]) -> None:
        """Show this, and what is new in the journal."""
        self._gateway.board.picture = picture
        self._gateway.board.journal.copy(events)

    async def ended(self) -> None:
        """Wait until `stop`; whoever waits learns of a death, too."""
        await self._over.wait()

    async def is_over(self) -> bool:
        """Whether it was told to stop."""
        return self._over.is_set()

    async def _serve(self) -> None:
        if not self._is_serving:
            self._is_serving = True
            await self._gateway.serve()

    async def stop(self, drain_s: float) -> None:
        """Let calls under way end for `drain_s`, then end them."""
        await self._gateway.stop(drain_s)
        self._over.set()
