from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.assignment import Assigned, Assignment

LONG = tuple(range(1000))


def assign(assignment: Assignment, prompt: tuple[int, ...], num_sequences: int = 1) -> Assigned:
    assigned = assignment.assign(prompt, num_sequences)
    assert assigned is not None
    return assigned


def test_the_idle_rank_is_taken_and_ties_go_to_the_lower() -> None:
    assignment = Assignment(range(3))
    assert [assign(assignment, (i,)).rank for i in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_long_prompt_weighs_more_than_short_ones() -> None:
    assignment = Assignment(range(2))
    assert assign(assignment, tuple(range(10_000, 11_000))).rank == 0
    assert [assign(assignment, (i,)).rank for i in range(5)] == [1] * 5


def test_many_sequences_weigh_more_than_one() -> None:
    assignment = Assignment(range(2))
    assert assign(assignment, (1,), num_sequences=8).rank == 0
    assert [assign(assignment, (i,)).rank for i in range(7)] == [1] * 7


def test_a_shared_prefix_stays_where_it_was_computed() -> None:
    assignment = Assignment(range(2))
    first = assign(assignment, LONG)
    assert first.rank == 0
    assignment.release(first)
    assert assign(assignment, (7,)).rank == 0  # rank 0 is the busier one now
    assert assign(assignment, (*LONG[:600], 5)).rank == 0
    assert assign(assignment, (*LONG[1:], 5)).rank == 1, "not a prefix"


def test_the_longest_prefix_wins() -> None:
    assignment = Assignment(range(2))
    for prompt, rank in ((LONG, 0), ((*LONG[:64], *range(5000, 5936)), 1)):
        assert assign(assignment, prompt).rank == rank
    assert assign(assignment, (*LONG[:64], *range(5000, 5600))).rank == 1
    assert assign(assignment, LONG[:512]).rank == 0


def test_a_hot_prefix_spreads_when_its_rank_is_much_busier() -> None:
    assignment = Assignment(range(2))
    ranks = [assign(assignment, LONG).rank for _ in range(200)]
    assert set(ranks) == {0, 1}


def test_no_rank_no_place() -> None:
    assignment = Assignment(range(1))
    assignment.lose(0)
    assert assignment.assign((1,), 1) is None


def test_a_lost_rank_gets_nothing_until_it_joins() -> None:
    assignment = Assignment(range(2))
    assign(assignment, LONG)
    assignment.lose(0)
    assert {assign(assignment, LONG).rank for _ in range(5)} == {1}
    assignment.join(0)
    assert assignment.ranks == (0, 1)
    assert assignment.loads[0] == 0
    assert assign(assignment, (1,)).rank == 0


def test_losing_an_unknown_rank_is_harmless() -> None:
    assignment = Assignment(range(1))
    assignment.lose(5)
    assert assignment.ranks == (0,)


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=100), st.integers(1, 4))), st.integers(1, 4))
def test_released_loads_come_back_to_zero(calls: list[tuple[list[int], int]], num_ranks: int) -> None:
    assignment = Assignment(range(num_ranks))
    placed = [assign(assignment, tuple(prompt), n) for prompt, n in calls]
    assert sum(assignment.loads.values()) == sum(one.load for one in placed)
    for one in placed:
        assignment.release(one)
    assert set(assignment.loads.values()) == {0}


def test_remembered_prefixes_are_bounded() -> None:
    assignment = Assignment(range(1))
    for number in range(20_000):
        assignment.release(assign(assignment, (number,) * 32))
    assert len(assignment._ranks_by_prefix) == 16_384
