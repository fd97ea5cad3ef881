from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.placement import Placement


@given(num_experts=st.integers(1, 70), num_ranks=st.integers(1, 20))
def test_even_placement_holds_every_expert_once_in_contiguous_runs(num_experts: int, num_ranks: int) -> None:
    placement = Placement.even(num_experts, num_ranks)
    held = [expert for rank in range(num_ranks) for expert in placement.local_experts(rank)]
    assert held == list(range(num_experts))
    sizes = [len(placement.local_experts(rank)) for rank in range(num_ranks)]
    assert max(sizes) - min(sizes) <= 1
    assert placement.position == tuple(range(num_experts))


@given(st.data())
def test_owner_and_local_index_find_the_expert(data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, 6))
    table = data.draw(st.lists(st.integers(0, num_ranks - 1), min_size=1, max_size=30))
    placement = Placement.from_table(table, num_ranks)
    assert placement.owner == tuple(table)
    for expert in range(len(table)):
        rank, index = placement.owner[expert], placement.local_index[expert]
        assert placement.local_experts(rank)[index] == expert
        before = sum(len(placement.local_experts(r)) for r in range(rank))
        assert placement.position[expert] == before + index


@pytest.mark.parametrize("experts", [((0, 1), (1,)), ((0,), (2,)), ((0, 0),)])
def test_table_that_does_not_hold_each_expert_once_is_refused(experts: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="once"):
        Placement(experts)


def test_owner_outside_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expert 1 is placed on rank 2, ranks are \[0, 2\)"):
        Placement.from_table([0, 2], 2)


def test_nothing_to_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no placement"):
        Placement.even(0, 2)
