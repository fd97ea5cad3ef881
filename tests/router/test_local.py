from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.permute import sort_by_expert
from router.dispatch import ExpertChoice
from router.local import LocalDispatcher


def choice_of(num_rows: int, num_experts: int, top_k: int, seed: int) -> ExpertChoice:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(num_rows, num_experts, generator=generator).argsort(1)[:, :top_k].to(torch.int32)
    weights = torch.full((num_rows, top_k), 1.0 / top_k)
    return ExpertChoice(ids=ids.contiguous(), weights=weights)


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(0, 30), num_experts=st.integers(4, 12), seed=st.integers(0, 99))
def test_combine_after_dispatch_is_the_identity_at_unit_weight(num_rows: int, num_experts: int, seed: int) -> None:
    hidden = torch.randn(num_rows, 8)
    dispatcher = LocalDispatcher(num_experts)
    choice = choice_of(num_rows, num_experts, 4, seed)  # four weights of 1/4: exact in fp32
    handle, rows = dispatcher.dispatch(hidden, choice)
    assert torch.equal(dispatcher.combine(rows, handle).combined(), hidden)
    assert handle.counts.tolist() == torch.bincount(choice.ids.flatten().long(), minlength=num_experts).tolist()
    assert dispatcher.load.snapshot() == tuple(handle.counts.tolist())


def test_rows_lie_sorted_by_expert_in_row_order() -> None:
    hidden = torch.arange(3.0)[:, None].repeat(1, 4)
    ids = torch.tensor([[2, 0], [2, 1], [0, 2]], dtype=torch.int32)
    handle, rows = LocalDispatcher(3).dispatch(hidden, ExpertChoice(ids=ids, weights=torch.ones(3, 2)))
    assert rows[:, 0].tolist() == [0, 2, 1, 0, 1, 2]
    assert handle.counts.tolist() == [2, 1, 3]


def test_load_adds_up_over_calls() -> None:
    dispatcher = LocalDispatcher(8)
    for seed in range(3):
        dispatcher.dispatch(torch.zeros(5, 4), choice_of(5, 8, 2, seed))
    assert sum(dispatcher.load.snapshot()) == 3 * 5 * 2


def test_what_the_gate_sorted_is_neither_sorted_nor_counted_again() -> None:
    dispatcher, hidden, choice = LocalDispatcher(8), torch.randn(5, 4), choice_of(5, 8, 2, 0)
    assert dispatcher.local_load is dispatcher.load
    copies = sort_by_expert(hidden, choice.ids, 8, dispatcher.load.totals)
    handle, rows = dispatcher.dispatch(hidden, replace(choice, copies=copies))
    assert rows is copies.rows and handle.counts is copies.counts
    assert torch.equal(dispatcher.combine(rows, handle).combined(), hidden)
    assert sum(dispatcher.load.snapshot()) == 5 * 2
