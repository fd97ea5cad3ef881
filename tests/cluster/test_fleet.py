"""Several replicas as one executor: numbers, losses, epochs, and what comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from cluster.executor import RankEvents
from cluster.fleet import Fleet
from scheduler.request import FinishReason, TokenDelta
from tests.cluster.executor_contract import a_request
from tests.cluster.simulated_executor import SimulatedExecutor


async def ready_group(num_ranks: int = 2) -> SimulatedExecutor:
    group = SimulatedExecutor(num_ranks=num_ranks)
    async for _ in group.start():
        pass
    return group


@dataclass
class Listener:
    """A fleet, its groups, and everything it reports."""

    fleet: Fleet
    groups: list[SimulatedExecutor]
    losses: list[tuple[int, str]]
    events: asyncio.Queue[RankEvents] = field(default_factory=asyncio.Queue)

    async def take(self, number: int) -> list[RankEvents]:
        async with asyncio.timeout(30):
            return [await self.events.get() for _ in range(number)]

    async def joined(self, number: int) -> list[int]:
        events = await self.take(number)
        assert all(event.joined for event in events), events
        return [event.rank for event in events]

    async def lost(self, number: int) -> list[int]:
        events = await self.take(number)
        assert all(event.lost for event in events), events
        return [event.rank for event in events]

    async def answer(self, rank: int, request_id: str, num_tokens: int) -> tuple[int, list[TokenDelta]]:
        """Submit, and read to the end; the rank that reported, and what."""
        await self.fleet.submit(rank, a_request(request_id, max_tokens=num_tokens))
        deltas: list[TokenDelta] = []
        while not deltas or deltas[-1].finish_reason is not FinishReason.LENGTH:
            (event,) = await self.take(1)
            deltas += event.deltas
        return event.rank, deltas


@asynccontextmanager
async def listening(*replicas: int, num_ranks: int = 2) -> AsyncIterator[Listener]:
    losses: list[tuple[int, str]] = []
    fleet = Fleet(lambda replica, reason: losses.append((replica, reason)))
    groups = [await ready_group(num_ranks) for _ in replicas]
    for replica, group in zip(replicas, groups, strict=True):
        fleet.adopt(replica, group)
    world = Listener(fleet, groups, losses)

    async def listen() -> None:
        async for event in fleet.events():
            await world.events.put(event)

    task = asyncio.create_task(listen())
    try:
        yield world
    finally:
        await fleet.stop()
        await asyncio.wait_for(task, 30)
        for group in world.groups:
            await group.stop()


async def test_one_lost_rank_is_the_loss_of_its_group_and_the_next_group_joins() -> None:
    async with listening(0) as world:
        assert await world.joined(2) == [0, 1]
        await world.groups[0].kill(1)
        assert await world.lost(2) == [0, 1]
        assert world.losses == [(0, "killed by the test")] and world.fleet.ranks() == ()
        world.groups.append(await ready_group())
        world.fleet.adopt(0, world.groups[1])
        assert await world.joined(2) == [0, 1]
        rank, deltas = await world.answer(0, "after", 3)
        assert rank == 0 and sum(len(delta.token_ids) for delta in deltas) == 3
        assert (await world.fleet.status()).ranks[1].is_alive


async def test_a_group_replaced_before_its_loss_was_noticed_is_reported_lost_first() -> None:
    async with listening(0, num_ranks=1) as world:
        assert await world.joined(1) == [0]
        world.groups.append(await ready_group(1))
        world.fleet.adopt(0, world.groups[1])
        events = await world.take(2)
        assert events[0].lost == "a new epoch has begun" and events[1].joined
        assert not world.losses, "nobody lost it"


async def test_ranks_are_numbered_through_and_answer_as_their_replica_does() -> None:
    async with listening(0, 2) as world:
        assert await world.joined(4) == [0, 1, 4, 5]
        assert world.fleet.ranks() == (0, 1, 4, 5) and list(world.fleet.ranks_of(2)) == [4, 5]
        for rank in (0, 5):
            reported, deltas = await world.answer(rank, f"r{rank}", 4)
            assert reported == rank and sum(len(delta.token_ids) for delta in deltas) == 4
        assert [rank for rank, _ in world.groups[1].submitted] == [1]
        status = await world.fleet.status()
        assert [(rank.replica, rank.rank) for rank in status.ranks] == [(0, 0), (0, 1), (2, 0), (2, 1)]


async def test_the_loss_of_a_replica_leaves_the_other_alone() -> None:
    async with listening(0, 1) as world:
        await world.joined(4)
        await world.groups[1].kill(0)
        assert await world.lost(2) == [2, 3]
        assert world.fleet.ranks() == (0, 1)
        assert (await world.answer(1, "still", 2))[0] == 1


async def test_a_replica_that_is_taken_away_is_forgotten() -> None:
    async with listening(0, 1) as world:
        await world.joined(4)
        world.fleet.release(1)
        world.fleet.release(7)
        assert await world.lost(2) == [2, 3]
        assert not world.losses, "it was taken away, not lost"
        with pytest.raises(ConnectionError, match="replica 1 is gone"):
            await world.fleet.submit(2, a_request("too late"))
        await world.fleet.cancel(2, "too late")
        assert [rank.replica for rank in (await world.fleet.status()).ranks] == [0, 0]


async def test_a_loss_still_brings_what_was_reported_with_it() -> None:
    async with listening(0, 1, num_ranks=1) as world:
        await world.joined(2)
        last = TokenDelta(request_id="r", sequence_index=0, token_ids=(5,))
        world.groups[1]._reports.put_nowait(RankEvents(rank=0, deltas=(last,), lost="died"))
        events = await world.take(2)
        assert (events[0].rank, events[0].deltas, events[0].lost) == (1, (last,), "")
        assert (events[1].rank, events[1].lost) == (1, "died")


async def test_a_group_whose_events_break_off_is_lost_alone() -> None:
    async with listening(0, 1, num_ranks=1) as world:
        await world.joined(2)
        world.groups[0].break_events(RuntimeError("the wire is cut"))
        assert await world.lost(1) == [0]
        assert world.losses == [(0, "RuntimeError: the wire is cut")] and world.fleet.ranks() == (1,)
