"""Serving over Ray: ranks and gateway are actors, this process is their controller and owns them all."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import ClusterSection, Device
from cluster.controller import Controller
from cluster.executor import GroupInfo, GroupStartError, GroupStatus, LoadProgress
from cluster.gateway import CannotListen
from cluster.gateway_config import GatewayConfig
from cluster.ray_actors import GatewayActor
from cluster.ray_executor import Placing, RayGroup
from cluster.ray_link import RayLink
from cluster.ray_session import RaySession
from engine.config import EngineConfig

_log = logging.getLogger(__name__)

_LISTEN_TRIES = 40  # the system may give the port of a process that died back a little late
_LISTEN_PAUSE_S = 0.25
_STOP_MARGIN_S = 5.0


class RayDeployment:
    """See `cluster.deployment.Deployment`. A gateway that dies is started again, on the same port."""

    def __init__(self, cluster: ClusterSection, engine: EngineConfig, gateway: GatewayConfig) -> None:
        self._cluster = cluster
        self._engine = engine
        self._config = gateway
        self._session = RaySession(cluster.address)
        self._controller: Controller[RayGroup] | None = None
        self._group: RayGroup | None = None
        self._gateway: Any = None  # handle of the GatewayActor
        self._listening: asyncio.Task[None] | None = None  # the first gateway's start

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Deployment`."""
        self._session.start(num_cpus=self._engine.group_size)
        placing, device = self._placing()
        engine = dataclasses.replace(self._engine, device=device)
        self._controller = Controller(
            lambda epoch: RayGroup(dataclasses.replace(engine, epoch=epoch), placing),
            self._adopt,
            max_restarts=self._cluster.max_restarts,
        )
        # Its process starts beside those of the ranks.
        self._listening = asyncio.create_task(self._start_gateway())
        async for progress in self._controller.start():
            yield progress

    @property
    def port(self) -> int:
        """See `Deployment`."""
        return self._config.port

    def info(self) -> GroupInfo:
        """See `Deployment`."""
        assert self._group is not None, "not started"
        return self._group.members.info

    async def status(self) -> GroupStatus:
        """See `Deployment`."""
        assert self._group is not None, "not started"
        return await RayLink(self._group.members, "").status()

    async def ended(self) -> str:
        """See `Deployment`."""
        assert self._controller is not None, "not started"
        tasks = [asyncio.create_task(self._controller.run()), asyncio.create_task(self._keep_gateway())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def stop(self, drain_s: float) -> None:
        """See `Deployment`."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._gateway is not None:
            await self._stop_gateway(drain_s)
        if self._controller is not None:
            await self._controller.stop()
        self._session.stop()

    def _placing(self) -> tuple[Placing, str]:
        """What each rank gets from Ray, and the device that it computes on then."""
        cluster = self._cluster
        has_gpus = ray.cluster_resources().get("GPU", 0) >= cluster.ranks
        if cluster.device is Device.CUDA and not has_gpus:
            raise GroupStartError(
                f"cluster.device: cuda is not allowed: the Ray cluster has no GPU for each of {cluster.ranks} ranks"
            )
        uses_gpus = has_gpus and cluster.device is not Device.CPU
        placing = Placing(
            spread=cluster.spread.value,
            num_cpus=cluster.cpus_per_rank,
            num_gpus=1.0 if uses_gpus else 0.0,
            network_interface=cluster.network_interface,
            timeout_s=min(cluster.start_timeout_s, 120.0),
        )
        return placing, "cuda" if uses_gpus else "cpu"

    async def _start_gateway(self) -> None:
        """A gateway on this machine, whose address the configuration means. Raises CannotListen."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._gateway = (
            ray.remote(GatewayActor)
            .options(num_cpus=0, scheduling_strategy=here, max_concurrency=100)
            .remote(uuid.uuid4().hex, self._config, self._engine.model_dir)
        )
        port, failure = await self._gateway.listen.remote()
        if failure:
            raise CannotListen(failure)
        self._config = dataclasses.replace(self._config, port=port)

    async def _adopt(self, group: RayGroup) -> None:
        self._group = group
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await listening
        try:
            await self._gateway.adopt.remote(group.members)
        except RayError as error:
            if not await self._is_gateway_gone():
                raise GroupStartError(f"the gateway cannot serve: {_first_line(error)}") from None
            # `_keep_gateway` starts another one, which adopts the group.

    async def _is_gateway_gone(self) -> bool:
        try:
            await self._gateway.is_over.remote()
        except RayError:
            return True
        return False

    async def _keep_gateway(self) -> str:
        """Replace each gateway that dies; returns why none can be started."""
        while True:
            try:
                await self._gateway.ended.remote()
                return "the gateway has stopped"
            except RayError as error:
                _log.warning("event=gateway_lost reason=%s", _first_line(error))
            for number in range(_LISTEN_TRIES):
                try:
                    await self._start_gateway()
                    break
                except CannotListen as error:
                    if number == _LISTEN_TRIES - 1:
                        return str(error)
                    await asyncio.sleep(_LISTEN_PAUSE_S)
                except RayError as error:
                    return f"the gateway cannot be started: {_first_line(error)}"
            assert self._group is not None, "not started"
            await self._adopt(self._group)
            _log.warning("event=gateway_restarted port=%d", self.port)

    async def _stop_gateway(self, drain_s: float) -> None:
        try:
            async with asyncio.timeout(drain_s + _STOP_MARGIN_S):
                await self._gateway.stop.remote(drain_s)
        except (RayError, TimeoutError) as error:
            _log.warning("event=gateway_not_stopped reason=%s", _first_line(error))
        ray.kill(self._gateway, no_restart=True)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
