"""How much of a batch is under way."""

from __future__ import annotations

import asyncio

from cluster.batch_throttle import Load, Throttle


def fill(throttle: Throttle, *, places: int, others: int = 0, looks: int = 40) -> int:
    """What a server with so many places, of which others hold some, brings it to."""
    for _ in range(looks):
        throttle.num_active = throttle.limit
        asked = throttle.limit + others
        throttle.see(Load(num_running=min(asked, places), num_waiting=max(asked - places, 0)))
    return throttle.limit


def test_it_fills_what_is_free_and_a_little_more() -> None:
    assert 256 + 64 <= fill(Throttle(100_000, 16), places=256) <= 256 + 2 * 64
    assert fill(Throttle(40, 16), places=256) == 40, "the bound that the user gave"


def test_it_gives_way_where_others_wait() -> None:
    throttle = Throttle(100_000, 16)
    alone = fill(throttle, places=64)
    beside = fill(throttle, places=64, others=60)
    assert beside <= alone - 50
    assert fill(throttle, places=64) >= alone - 32, "and comes back"


def test_a_refusal_halves_it_and_never_stops_it() -> None:
    throttle = Throttle(1000, 100)
    throttle.num_active = 80
    throttle.refused()
    assert throttle.limit == 40
    for _ in range(10):
        throttle.refused()
    assert throttle.limit == 1


def test_it_does_not_grow_beyond_what_it_uses() -> None:
    throttle = Throttle(1000, 100)
    throttle.num_active = 3  # the input is slow
    for _ in range(10):
        throttle.see(Load(num_running=3, num_waiting=0))
    assert throttle.limit == 100


async def test_places_are_waited_for() -> None:
    throttle = Throttle(4, 4)
    for _ in range(4):
        await throttle.enter()
    fifth = asyncio.create_task(throttle.enter())
    await asyncio.sleep(0)
    assert not fifth.done()
    throttle.leave()
    await asyncio.wait_for(fifth, 10)
    assert throttle.num_active == 4
