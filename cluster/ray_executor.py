"""One epoch's ranks as Ray actors: a placement group, an actor in each bundle, and how they meet."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.executor import GroupInfo, GroupStartError, GroupStatus, LoadProgress, RankEvents
from cluster.ray_actors import RankActor
from cluster.ray_link import Members, RayLink, reason
from engine.config import EngineConfig
from scheduler.request import Request

# Threads of a rank's actor. Inbox: one, so that a request's cancellation cannot overtake it. Poll: a gateway's call
# may outlive it and must not be in the way of its successor's.
_CONCURRENCY = {"inbox": 1, "poll": 2, "build": 1, "progress": 1, "watch": 1, "control": 2}
_PROGRESS_S = 5.0
_WATCH_S = 10.0
_STOP_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """What Ray must set aside for each rank, and where."""

    spread: str = "PACK"  # Ray's name of the strategy
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resource: str = ""  # the operator's own, one for each rank
    network_interface: str = ""
    timeout_s: float = 120.0  # to find room


class RayGroup:
    """Starts, watches and stops the actors; see `cluster.controller.Group`."""

    def __init__(self, config: EngineConfig, placing: Placing) -> None:
        """`config` is that of any rank: rank and store are filled in here."""
        self._config = config
        self._placing = placing
        self._room: PlacementGroup | None = None
        self._actors: tuple[Any, ...] = ()
        self._members: Members | None = None

    @property
    def members(self) -> Members:
        """The group that serves."""
        assert self._members is not None, "the group has not started"
        return self._members

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Group`. Raises GroupStartError, with every rank stopped."""
        try:
            await self._make_room()
            self._actors = tuple(self._make_actor(rank) for rank in range(self._config.group_size))
            for rank in range(len(self._actors)):
                yield LoadProgress(rank=rank, stage="starting")
            async for progress in self._build():
                yield progress
        finally:
            if self._members is None:
                await self.stop()

    async def ended(self) -> str:
        """See `Group`."""
        watches = [asyncio.create_task(self._watch(rank)) for rank in range(len(self._actors))]
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for watch in watches:
                watch.cancel()

    async def stop(self) -> None:
        """See `Group`."""
        if self._members is not None:
            calls = [actor.stop.options(concurrency_group="control").remote(_STOP_GRACE_S) for actor in self._actors]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_GRACE_S):
                    await asyncio.gather(*(_result(call) for call in calls), return_exceptions=True)
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._room is not None:
            remove_placement_group(self._room)
            self._room = None

    async def _make_room(self) -> None:
        bundle = {"CPU": self._placing.num_cpus, "GPU": self._placing.num_gpus}
        bundle |= {self._placing.resource: 1.0} if self._placing.resource else {}
        bundle = {name: number for name, number in bundle.items() if number} or {"CPU": 0.001}
        # Kept at once: a start that is cancelled meanwhile gives it back, and with it the demand for machines.
        room = self._room = placement_group([bundle] * self._config.group_size, strategy=self._placing.spread)
        try:
            async with asyncio.timeout(self._placing.timeout_s):
                await room.ready()
        except TimeoutError:
            raise GroupStartError(
                f"the Ray cluster has no room for {self._config.group_size} ranks of {bundle} with "
                f"cluster.spread={self._placing.spread}; it has {ray.cluster_resources()}"
            ) from None

    def _make_actor(self, rank: int) -> Any:
        name = self._placing.network_interface
        variables = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}
        return (
            ray.remote(concurrency_groups=_CONCURRENCY)(RankActor)
            .options(
                num_cpus=self._placing.num_cpus,
                num_gpus=self._placing.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._room, placement_group_bundle_index=rank),
                **({"runtime_env": {"env_vars": variables}} if variables else {}),
            )
            .remote(rank)
        )

    async def _build(self) -> AsyncIterator[LoadProgress]:
        """Let the ranks meet at rank 0's store and build; passes their reports on until all serve."""
        config = self._config
        reports: asyncio.Queue[LoadProgress | GroupInfo | GroupStartError] = asyncio.Queue()
        if config.group_size > 1:
            try:
                config = dataclasses.replace(config, store=await self._actors[0].host_store.remote())
            except RayError as error:
                raise GroupStartError(f"rank 0 did not start: {reason(0, error)}") from None
        tasks = [asyncio.create_task(self._build_rank(rank, config, reports)) for rank in range(len(self._actors))]
        infos: list[GroupInfo] = []
        try:
            while len(infos) < len(self._actors):
                report = await reports.get()
                if isinstance(report, GroupStartError):
                    raise report
                if isinstance(report, LoadProgress):
                    yield report
                else:
                    infos.append(report)
        finally:
            for task in tasks:
                task.cancel()
        least = min(info.kv_tokens_per_rank for info in infos)
        info = dataclasses.replace(infos[0], kv_tokens_per_rank=least)
        self._members = Members(epoch=config.epoch, actors=self._actors, info=info)

    async def _build_rank(
        self, rank: int, config: EngineConfig, reports: asyncio.Queue[LoadProgress | GroupInfo | GroupStartError]
    ) -> None:
        """Build one rank; its reports come in order, its facts last."""
        actor = self._actors[rank]
        call = actor.build.options(concurrency_group="build").remote(dataclasses.replace(config, rank=rank))
        built = asyncio.ensure_future(_result(call))
        ask = actor.progress.options(concurrency_group="progress")
        num_seen = 0
        try:
            while True:
                is_built = built.done()
                for progress in await ask.remote(num_seen, 0.0 if is_built else 0.2):
                    num_seen += 1
                    reports.put_nowait(progress)
                if is_built:
                    break
            info, failure = await built
        except RayError as error:
            info, failure = None, reason(rank, error)
        if info is None:
            reports.put_nowait(GroupStartError(f"rank {rank} did not start: {failure}"))
            return
        reports.put_nowait(LoadProgress(rank=rank, stage="ready"))
        reports.put_nowait(info)

    async def _watch(self, rank: int) -> str:
        watch = self._actors[rank].ended.options(concurrency_group="watch")
        try:
            while not (ended := await watch.remote(_WATCH_S)):
                pass
        except RayError as error:
            return reason(rank, error)
        return f"rank {rank}: {ended}"


class RayExecutor:
    """A group and the way to it in one process, for those who need no gateway; see `cluster.executor.Executor`.

    Ray must run; whoever connected to it stops it.
    """

    def __init__(self, config: EngineConfig, placing: Placing) -> None:
        self._group = RayGroup(config, placing)
        self._link: RayLink | None = None
        self._is_stopped = False

    async def start(self) -> AsyncIterator[LoadProgress]:
        """See `Executor`."""
        async for progress in self._group.start():
            yield progress
        self._link = RayLink(self._group.members, uuid.uuid4().hex)
        await self._link.attach()

    def info(self) -> GroupInfo:
        """See `Executor`."""
        return self._ready.info()

    def ranks(self) -> tuple[int, ...]:
        """See `Executor`."""
        return self._ready.ranks()

    async def submit(self, rank: int, request: Request) -> None:
        """See `Executor`."""
        await self._ready.submit(rank, request)

    async def cancel(self, rank: int, request_id: str) -> None:
        """See `Executor`."""
        await self._ready.cancel(rank, request_id)

    def events(self) -> AsyncIterator[RankEvents]:
        """See `Executor`."""
        return self._ready.events()

    async def status(self) -> GroupStatus:
        """See `Executor`."""
        return await self._ready.status()

    async def stop(self) -> None:
        """See `Executor`."""
        if self._is_stopped:
            return
        self._is_stopped = True
        await self._group.stop()
        if self._link is not None:
            await self._link.stop()

    @property
    def _ready(self) -> RayLink:
        assert self._link is not None, "the group has not started"
        return self._link


async def _result(call: Any) -> Any:
    return await call
