from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from cluster.controller import Controller
from cluster.executor import GroupStartError, LoadProgress


class ScriptedGroup:
    """A group that is lost, or does not start, when the test says so."""

    def __init__(self, epoch: int, failure: str = "") -> None:
        self.epoch = epoch
        self.is_stopped = False
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._failure = failure

    async def start(self) -> AsyncIterator[LoadProgress]:
        yield LoadProgress(rank=0, stage="starting")
        if self._failure:
            raise GroupStartError(self._failure)

    async def ended(self) -> str:
        return await self.lost

    async def stop(self) -> None:
        self.is_stopped = True


class World:
    def __init__(self, max_restarts: int, failures: dict[int, str] | None = None) -> None:
        self.groups: list[ScriptedGroup] = []
        self.serving: asyncio.Queue[ScriptedGroup] = asyncio.Queue()
        self.now = 0.0

        def make(epoch: int) -> ScriptedGroup:
            self.groups.append(ScriptedGroup(epoch, (failures or {}).get(epoch, "")))
            return self.groups[-1]

        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.controller = Controller(make, self.serving.put, max_restarts=max_restarts, clock=clock)


async def test_a_lost_group_is_stopped_and_replaced_in_the_next_epoch() -> None:
    world = World(max_restarts=1)
    assert [step.stage async for step in world.controller.start()] == ["starting"]
    first = await world.serving.get()
    running = asyncio.create_task(world.controller.run())
    first.lost.set_result("rank 1 died")
    second = await asyncio.wait_for(world.serving.get(), 10)
    assert (first.epoch, second.epoch, world.controller.epoch) == (0, 1, 1)
    assert first.is_stopped and not second.is_stopped
    second.lost.set_result("rank 0 died")  # at once, for the second time in a row
    assert await asyncio.wait_for(running, 10) == "rank 0 died"
    assert second.is_stopped and len(world.groups) == 2


async def test_a_minute_of_peace_forgives() -> None:
    world = World(max_restarts=1)
    async for _ in world.controller.start():
        pass
    running = asyncio.create_task(world.controller.run())
    for epoch in range(4):
        group = await asyncio.wait_for(world.serving.get(), 10)
        assert group.epoch == epoch
        await asyncio.sleep(0)  # the controller watches from here on
        world.now += 61.0
        group.lost.set_result("again")
    running.cancel()


async def test_an_epoch_that_does_not_start_counts_and_the_next_is_tried() -> None:
    world = World(max_restarts=2, failures={1: "no memory"})
    async for _ in world.controller.start():
        pass
    running = asyncio.create_task(world.controller.run())
    (await world.serving.get()).lost.set_result("rank 1 died")
    group = await asyncio.wait_for(world.serving.get(), 10)
    assert group.epoch == 2 and world.groups[1].is_stopped
    group.lost.set_result("rank 0 died")
    assert await asyncio.wait_for(running, 10) == "rank 0 died"


async def test_a_first_group_that_does_not_start_is_the_caller_s_matter() -> None:
    world = World(max_restarts=5, failures={0: "no checkpoint"})
    with pytest.raises(GroupStartError, match="no checkpoint"):
        async for _ in world.controller.start():
            pass
    assert world.serving.empty()
