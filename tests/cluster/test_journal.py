from __future__ import annotations

import asyncio

from cluster.attainment import Attainment
from cluster.journal import EventKind, Journal


def test_events_are_numbered_and_the_oldest_are_forgotten() -> None:
    journal = Journal(lambda: 12.5)
    for number in range(2100):
        journal.note(EventKind.SCALE, f"reason {number}", numbers={"wanted": number})
    events = journal.after(0)
    assert [event.id for event in events] == list(range(101, 2101))
    assert (events[0].reason, events[0].numbers, events[0].time_s) == ("reason 100", {"wanted": 100}, 12.5)
    assert [event.id for event in journal.after(2098)] == [2099, 2100] and not journal.after(2100)


def test_a_copy_takes_each_event_once() -> None:
    journal, copy = Journal(lambda: 0.0), Journal(lambda: 0.0)
    for _ in range(3):
        journal.note(EventKind.STARTING, replica=1)
        copy.copy(journal.after(0))
    assert copy.after(0) == journal.after(0)


async def test_who_waits_hears_of_the_next_event_and_of_the_end() -> None:
    journal = Journal(lambda: 0.0)
    waiting = [asyncio.create_task(journal.wait(0)) for _ in range(2)]
    await asyncio.sleep(0)
    journal.note(EventKind.SERVING, replica=0)
    for task in waiting:
        assert [event.id for event in await asyncio.wait_for(task, 10)] == [1]
    last = asyncio.create_task(journal.wait(1))
    await asyncio.sleep(0)
    journal.close()
    assert await asyncio.wait_for(last, 10) == () and len(journal.after(0)) == 1


def test_attainment_is_the_worse_share_of_the_last_half_minute() -> None:
    now = 0.0
    attainment = Attainment(1.0, 0.1, lambda: now)
    assert attainment.share() is None
    attainment.first_token(5.0)
    assert attainment.share() == 0.0
    now = 20.0
    for seconds in (0.5, 0.6, 1.0):
        attainment.first_token(seconds)
    assert attainment.share() == 0.75
    attainment.token(0.05)
    attainment.token(0.2)
    assert attainment.share() == 0.5
    now = 40.0
    assert attainment.share() == 0.5, "the first one is forgotten, the rest is not"
    now = 60.0
    assert attainment.share() is None


def test_without_limits_nothing_is_kept() -> None:
    attainment = Attainment(None, None, lambda: 0.0)
    attainment.first_token(100.0)
    attainment.token(100.0)
    assert attainment.share() is None
