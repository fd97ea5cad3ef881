from __future__ import annotations

import asyncio

from cluster.epochs import EpochExecutor
from cluster.executor import RankEvents
from scheduler.request import FinishReason
from tests.cluster.executor_contract import a_request
from tests.cluster.simulated_executor import SimulatedExecutor


async def ready_group(num_ranks: int = 2) -> SimulatedExecutor:
    group = SimulatedExecutor(num_ranks=num_ranks)
    async for _ in group.start():
        pass
    return group


async def take(events: asyncio.Queue[RankEvents], number: int) -> list[RankEvents]:
    async with asyncio.timeout(30):
        return [await events.get() for _ in range(number)]


async def test_one_lost_rank_is_the_loss_of_its_group_and_the_next_group_joins() -> None:
    reasons: list[str] = []
    epochs = EpochExecutor(reasons.append)
    first, second = await ready_group(), await ready_group()
    epochs.adopt(first)
    events: asyncio.Queue[RankEvents] = asyncio.Queue()

    async def listen() -> None:
        async for event in epochs.events():
            await events.put(event)

    listening = asyncio.create_task(listen())
    await first.kill(1)
    lost = await take(events, 2)
    assert [event.rank for event in lost] == [0, 1] and all(event.lost for event in lost)
    assert len(reasons) == 1
    epochs.adopt(second)
    joined = await take(events, 2)
    assert [event.rank for event in joined] == [0, 1] and all(event.joined for event in joined)
    await epochs.submit(0, a_request("after", max_tokens=3))
    tokens: list[int] = []
    ended = False
    while not ended:
        for delta in (await take(events, 1))[0].deltas:
            tokens += delta.token_ids
            ended = delta.finish_reason is FinishReason.LENGTH
    assert len(tokens) == 3
    assert (await epochs.status()).ranks[1].is_alive
    await epochs.stop()
    await asyncio.wait_for(listening, 30)
    for group in (first, second):
        await group.stop()


async def test_a_group_replaced_before_its_loss_was_noticed_is_reported_lost_first() -> None:
    epochs = EpochExecutor()
    first, second = await ready_group(1), await ready_group(1)
    epochs.adopt(first)
    epochs.adopt(second)
    events = aiter(epochs.events())
    async with asyncio.timeout(30):
        assert (await anext(events)).lost == "a new epoch has begun"
        assert (await anext(events)).joined
    await epochs.stop()
    for group in (first, second):
        await group.stop()
