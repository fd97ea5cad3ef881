from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.queue_policy import Line, service_order, turn
from scheduler.sequence import Sequence
from tests.scheduler.world import request


def sequence(number: int, length: int, priority: int = 0) -> Sequence:
    asked = request(str(number), length, priority=priority)
    return Sequence(
        sequence_id=number,
        index=0,
        request=asked,
        turn=float(number),
        arrival_s=0.0,
        stop_token_ids=(),
        tokens=[*asked.prompt],
    )


def test_the_same_priority_is_served_by_arrival() -> None:
    assert turn(1.0, 0, 30.0) < turn(2.0, 0, 30.0)


def test_a_priority_is_worth_its_ageing_and_no_more() -> None:
    assert turn(29.0, 1, 30.0) < turn(0.0, 0, 30.0) < turn(31.0, 1, 30.0)


def test_the_first_stays_first_then_the_shortest() -> None:
    line = [sequence(1, 50), sequence(2, 90), sequence(3, 5), sequence(4, 20)]
    assert [s.sequence_id for s in service_order(line)] == [1, 3, 4, 2]
    assert service_order([]) == []


def test_the_background_comes_last_unless_it_is_first_in_turn() -> None:
    line = [sequence(1, 50), sequence(2, 9, priority=-1), sequence(3, 90), sequence(4, 20)]
    assert [s.sequence_id for s in service_order(line)] == [1, 4, 3, 2]
    assert [s.sequence_id for s in service_order(line[1:])] == [2, 4, 3]


def test_a_line_is_sorted_whatever_the_order_of_arrival() -> None:
    line: Line[str] = Line()
    entries = [(random.Random(number).choice([1.0, 2.0, 3.0]), number) for number in range(50)]
    for key, number in entries:
        line.add(key, number, f"{key}-{number}")
    assert list(line) == [f"{key}-{number}" for key, number in sorted(entries)]
    assert line.first(2) == list(line)[:2]
    assert line.last() == list(line)[-1]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), max_size=40))
def test_a_line_loses_what_is_removed_and_nothing_else(arrivals: list[tuple[float, bool]]) -> None:
    line: Line[int] = Line()
    for number, (key, _) in enumerate(arrivals):
        line.add(key, number, number)
    for number, (key, leaves) in enumerate(arrivals):
        if leaves:
            line.remove(key, number)
    assert sorted(line) == [number for number, (_, leaves) in enumerate(arrivals) if not leaves]


def test_removing_what_is_not_there_is_a_mistake() -> None:
    line: Line[str] = Line()
    line.add(1.0, 1, "a")
    with pytest.raises(AssertionError, match="is not in the line"):
        line.remove(0.5, 1)
