"""The gateway's actor, kept alive: one that dies is started again, on the same port."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.autoscale import Load
from cluster.board import FleetPicture
from cluster.executor import GroupInfo, GroupStartError, GroupStatus
from cluster.gateway import CannotListen
from cluster.gateway_config import GatewayConfig
from cluster.journal import EventKind, Journal
from cluster.ray_actors import GatewayActor
from cluster.ray_executor import RayGroup
from cluster.ray_link import RayLink

_log = logging.getLogger(__name__)

_LISTEN_TRIES = 40  # the system may give the port of a process that died back a little late
_LISTEN_PAUSE_S = 0.25
_STOP_MARGIN_S = 5.0
_DRAIN_MARGIN_S = 10.0

T = TypeVar("T")


class RayGateway:
    """See `cluster.door.Door`."""

    def __init__(self, config: GatewayConfig, model_dir: str, journal: Journal) -> None:
        self._config = config
        self._model_dir = model_dir
        self._journal = journal
        self._actor: Any = None  # handle of the GatewayActor
        self._listening: asyncio.Task[None] | None = None  # the first one's start
        self._groups: dict[int, RayGroup] = {}
        self._info: GroupInfo | None = None
        self._picture = FleetPicture()
        self._posted_id = 0  # the last event that the present one has

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._config.port

    def info(self) -> GroupInfo:
        """Facts of any group."""
        assert self._info is not None, "no group yet"
        return self._info

    async def status(self) -> GroupStatus:
        """A snapshot of the groups that serve."""
        replicas = sorted(self._groups)
        groups = await asyncio.gather(*(RayLink(self._groups[n].members, "").status() for n in replicas))
        ranks = [
            dataclasses.replace(rank, replica=replica)
            for replica, group in zip(replicas, groups, strict=True)
            for rank in group.ranks
        ]
        return GroupStatus(epoch=max((group.epoch for group in groups), default=0), ranks=tuple(ranks))

    def begin(self) -> None:
        """Start its process, beside those of the ranks."""
        self._listening = asyncio.create_task(self._listen())

    async def ready(self) -> None:
        """Wait until it listens. Raises CannotListen."""
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await listening

    async def adopt(self, replica: int, group: RayGroup) -> None:
        """See `Door`. Raises CannotListen, and GroupStartError when the gateway cannot serve."""
        await self.ready()
        self._groups[replica] = group
        self._info = group.members.info
        try:
            await self._actor.adopt.remote(replica, group.members)
        except RayError as error:
            if not await self._is_gone():
                raise GroupStartError(f"the gateway cannot serve: {first_line(error)}") from None
            # `keep` starts another one, which adopts the group.

    async def release(self, replica: int) -> None:
        """See `Door`."""
        self._groups.pop(replica, None)
        await _answer(self._actor.release.remote(replica))

    async def drain(self, replica: int, limit_s: float) -> int:
        """See `Door`. A gateway that comes anew meanwhile does not give the replica anything either."""
        self._groups.pop(replica, None)
        return await _answer(self._actor.drain.remote(replica, limit_s), limit_s + _DRAIN_MARGIN_S)

    async def load(self) -> Load:
        """See `Door`."""
        return await _answer(self._actor.load.remote())

    async def post(self, picture: FleetPicture) -> None:
        """See `Door`."""
        self._picture = picture
        events = self._journal.after(self._posted_id)
        await _answer(self._actor.post.remote(picture, events))
        if events:
            self._posted_id = events[-1].id

    async def keep(self) -> str:
        """Replace each that dies; returns why none can be started."""
        while True:
            try:
                await self._actor.ended.remote()
                return "the gateway has stopped"
            except RayError as error:
                _log.warning("event=gateway_lost reason=%s", first_line(error))
                self._journal.note(EventKind.GATEWAY_LOST, first_line(error))
            if failure := await self._listen_again():
                return failure
            await self._hand_over()
            _log.warning("event=gateway_restarted port=%d", self.port)

    async def stop(self, drain_s: float) -> None:
        """Let calls under way end for `drain_s`, then end them, and its process. Safe to call twice."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._actor is None:
            return
        try:
            async with asyncio.timeout(drain_s + _STOP_MARGIN_S):
                await self._actor.stop.remote(drain_s)
        except (RayError, TimeoutError) as error:
            _log.warning("event=gateway_not_stopped reason=%s", first_line(error))
        ray.kill(self._actor, no_restart=True)
        self._actor = None

    async def _listen(self) -> None:
        """A gateway on this machine, whose address the configuration means. Raises CannotListen."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = (
            ray.remote(GatewayActor)
            .options(num_cpus=0, scheduling_strategy=here, max_concurrency=100)
            .remote(uuid.uuid4().hex, self._config, self._model_dir)
        )
        port, failure = await self._actor.listen.remote()
        if failure:
            raise CannotListen(failure)
        self._config = dataclasses.replace(self._config, port=port)

    async def _listen_again(self) -> str:
        for number in range(_LISTEN_TRIES):
            try:
                await self._listen()
                return ""
            except CannotListen as error:
                if number == _LISTEN_TRIES - 1:
                    return str(error)
                await asyncio.sleep(_LISTEN_PAUSE_S)
            except RayError as error:
                return f"the gateway cannot be started: {first_line(error)}"
        raise AssertionError("the last try returns")

    async def _hand_over(self) -> None:
        """Tell a gateway that came anew everything that the one before knew."""
        self._posted_id = 0
        self._journal.note(EventKind.GATEWAY_SERVING)
        try:
            await self.post(self._picture)
            for replica, group in sorted(self._groups.items()):
                await self.adopt(replica, group)
            if not self._groups and self._info is not None:
                await _answer(self._actor.wait.remote(self._info))
        except ConnectionError:
            return  # it is gone again: `keep` sees that

    async def _is_gone(self) -> bool:
        try:
            await self._actor.is_over.remote()
        except RayError:
            return True
        return False


async def _answer(call: Awaitable[T], timeout_s: float = 30.0) -> T:
    """What the gateway answers. Raises ConnectionError where it does not."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except RayError as error:
        raise ConnectionError(f"the gateway does not answer: {first_line(error)}") from None
    except TimeoutError:
        raise ConnectionError(f"the gateway did not answer within {timeout_s:g} s") from None


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
