"""Serving over Ray: ranks and gateway are actors, this process is their controller and owns them all."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

import ray

from cluster.config import ClusterSection
from cluster.config_words import Device
from cluster.door import FleetRules
from cluster.executor import GroupInfo, GroupStartError, GroupStatus, LoadProgress
from cluster.gateway_config import GatewayConfig
from cluster.journal import Journal
from cluster.ray_executor import Placing, RayGroup
from cluster.ray_gateway import RayGateway
from cluster.ray_session import RaySession
from cluster.replicas import Replicas
from engine.config import EngineConfig

_ROOM_TIMEOUT_S = 120.0  # for one replica alone: no machine is expected to come for it


class RayDeployment:
    """See `cluster.deployment.Deployment`."""

    def __init__(
        self,
        cluster: ClusterSection,
        engine: EngineConfig,
        gateway: GatewayConfig,
        rules: FleetRules,
        room_timeout_s: float,
    ) -> None:
        """`room_timeout_s`: how long a replica may wait for Ray's autoscaler where there may be several."""
        self._cluster = cluster
        self._engine = engine
        self._rules = rules
        self._room_timeout_s = room_timeout_s if rules.policy.max_replicas > 1 else _ROOM_TIMEOUT_S
        self._session = RaySession(cluster.address)
        self._journal = Journal(time.time)
        self._gateway = RayGateway(gateway, engine.model_dir, self._journal)
        self._replicas: Replicas[RayGroup] | None = None

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Deployment`."""
        self._session.start(num_cpus=self._engine.group_size * self._rules.policy.max_replicas)
        placing, device = self._placing()
        engine = dataclasses.replace(self._engine, device=device)
        self._replicas = Replicas(
            lambda epoch: RayGroup(dataclasses.replace(engine, epoch=epoch), placing),
            self._gateway,
            self._rules,
            self._journal,
        )
        self._gateway.begin()
        async for progress in self._replicas.start():
            yield progress

    @property
    def port(self) -> int:
        """See `Deployment`."""
        return self._gateway.port

    def info(self) -> GroupInfo:
        """See `Deployment`."""
        return self._gateway.info()

    async def status(self) -> GroupStatus:
        """See `Deployment`."""
        return await self._gateway.status()

    async def ended(self) -> str:
        """See `Deployment`."""
        assert self._replicas is not None, "not started"
        tasks = [asyncio.create_task(self._replicas.run()), asyncio.create_task(self._gateway.keep())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def stop(self, drain_s: float) -> None:
        """See `Deployment`."""
        await self._gateway.stop(drain_s)
        if self._replicas is not None:
            await self._replicas.stop()
        self._session.stop()

    def _placing(self) -> tuple[Placing, str]:
        """What each rank gets from Ray, and the device that it computes on then."""
        cluster = self._cluster
        has_gpus = ray.cluster_resources().get("GPU", 0) >= cluster.ranks
        may_grow = self._rules.policy.max_replicas > 1
        if cluster.device is Device.CUDA and not has_gpus and not may_grow:
            raise GroupStartError(
                f"cluster.device: cuda is not allowed: the Ray cluster has no GPU for each of {cluster.ranks} ranks"
            )
        # Where Ray's autoscaler brings the machines there may be no GPU yet: `cuda` asks for one.
        uses_gpus = cluster.device is Device.CUDA or (has_gpus and cluster.device is Device.AUTO)
        placing = Placing(
            spread=cluster.spread.value,
            num_cpus=cluster.cpus_per_rank,
            num_gpus=1.0 if uses_gpus else 0.0,
            resource=cluster.rank_resource,
            network_interface=cluster.network_interface,
            timeout_s=min(cluster.start_timeout_s, self._room_timeout_s),
        )
        return placing, "cuda" if uses_gpus else "cpu"
