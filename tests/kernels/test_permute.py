"""To expert order and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import native
from kernels.permute import combine_rows, expert_order, gather_rows, reference, sort_by_expert
from kernels.permute.tile_map import tile_map


def random_ids(draw: torch.Generator, num_rows: int, top_k: int, num_experts: int) -> torch.Tensor:
    noise = torch.rand(num_rows, num_experts, generator=draw)
    return noise.argsort(1)[:, :top_k].int().contiguous()


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(0, 70), top_k=st.integers(1, 5), seed=st.integers(0, 1000))
def test_order_is_a_stable_sort(num_rows: int, top_k: int, seed: int) -> None:
    ids = random_ids(torch.Generator().manual_seed(seed), num_rows, top_k, 6)
    counts, places = expert_order(ids, 6)
    assert counts.tolist() == torch.bincount(ids.flatten().long(), minlength=6).tolist()
    by_place = sorted(range(ids.numel()), key=lambda copy: int(places.flatten()[copy]))
    assert by_place == sorted(range(ids.numel()), key=lambda copy: (int(ids.flatten()[copy]), copy))


@pytest.mark.parametrize("num_copies", [0, 1, 127, 128, 129, 300, 1031])
@pytest.mark.parametrize("num_experts", [1, 6, 200])
def test_order_is_a_stable_sort_at_every_length(
    backend: str, draw: torch.Generator, num_copies: int, num_experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of Triton: all against all, and by blocks."""
    ids = torch.randint(num_experts, (num_copies, 1), generator=draw).int()
    expected = reference.expert_order(ids, num_experts)
    for limit in (4096, 0) if backend == "triton" else (4096,):
        if backend == "triton":
            monkeypatch.setattr("kernels.permute.triton_kernel.MAX_COMPARED", limit)
            monkeypatch.setattr("kernels.permute.triton_kernel.BLOCKS_AT_ONCE", 2)  # the longest has three
        for found, truth in zip(expert_order(ids, num_experts), expected, strict=True):
            assert found.dtype == torch.int32 and torch.equal(found, truth), f"limit {limit}"


def test_combine_undoes_gather_at_unit_weights(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    for num_rows in (0, 1, 63):
        hidden = torch.randn(num_rows, 24, generator=draw).to(dtype)
        ids = random_ids(draw, num_rows, 4, 16)
        _, places = expert_order(ids, 16)
        rows = gather_rows(hidden, places, places.numel())
        assert torch.equal(rows[places[:, 2].long()], hidden)
        assert torch.equal(combine_rows(rows, places, torch.full((num_rows, 4), 0.25)), hidden)


def test_combine_matches_fp64(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    rows = torch.randn(150, 100, generator=draw).to(dtype)
    places = torch.randperm(150, generator=draw).int().view(50, 3)
    weights = torch.rand(50, 3, generator=draw)
    truth = (rows.double()[places.long()] * weights.double()[..., None]).sum(1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(combine_rows(rows, places, weights).double(), truth, rtol=tolerance, atol=tolerance)


def test_what_combine_adds_is_added_to_what_it_would_return(
    backend: str, dtype: torch.dtype, draw: torch.Generator
) -> None:
    rows, plus = torch.randn(60, 100, generator=draw).to(dtype), torch.randn(20, 100, generator=draw).to(dtype)
    places = torch.randperm(60, generator=draw).int().view(20, 3)
    weights = torch.rand(20, 3, generator=draw)
    assert torch.equal(combine_rows(rows, places, weights, plus), combine_rows(rows, places, weights) + plus)


def test_all_rows_on_one_expert_and_nan_stays(backend: str, dtype: torch.dtype) -> None:
    counts, places = expert_order(torch.full((30, 1), 3, dtype=torch.int32), 5)
    assert counts.tolist() == [0, 0, 0, 30, 0] and places.flatten().tolist() == list(range(30))
    hidden = torch.ones(30, 8, dtype=dtype)
    hidden[4] = float("nan")
    is_nan = combine_rows(gather_rows(hidden, places, 30), places, torch.ones(30, 1)).isnan()
    assert is_nan[4].all() and int(is_nan.sum()) == 8


@pytest.mark.parametrize("num_rows", [1, 33, 130])
def test_copies_for_nobody_are_passed_over(
    backend: str, dtype: torch.dtype, draw: torch.Generator, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are somebody's lie as if the others were not there, and sum as if those were zero."""
    ids = torch.randint(-1, 6, (num_rows, 4), generator=draw).int()
    ids[0] = -1
    is_somebodys = ids.flatten() >= 0
    expected_counts, expected = reference.expert_order(ids.flatten()[is_somebodys][:, None], 6)
    hidden = torch.randn(num_rows, 40, generator=draw).to(dtype)
    weights = torch.rand(num_rows, 4, generator=draw)
    for limit in (4096, 0) if backend == "triton" else (4096,):
        if backend == "triton":
            monkeypatch.setattr("kernels.permute.triton_kernel.MAX_COMPARED", limit)
        counts, places = expert_order(ids, 6)
        assert torch.equal(counts, expected_counts)
        assert torch.equal(places.flatten()[is_somebodys], expected.flatten())
        assert (places.flatten()[~is_somebodys] == -1).all()
        rows = gather_rows(hidden, places, places.numel())
        rows[int(counts.sum()) :] = float("nan")
        out = combine_rows(rows, places, weights)
        without = torch.where(ids < 0, 0.0, weights)
        assert torch.equal(out, combine_rows(rows.nan_to_num(), places.clamp_min(0), without))
        assert not out[0].any()


def test_copies_are_sorted_and_totals_grow(backend: str, draw: torch.Generator) -> None:
    hidden, ids = torch.randn(41, 24, generator=draw), random_ids(draw, 41, 3, 16)
    counts, places = reference.expert_order(ids, 16)
    totals = torch.arange(16) + (1 << 40)
    copies = sort_by_expert(hidden, ids, 16, totals)
    assert torch.equal(copies.counts, counts) and torch.equal(copies.places, places)
    rows = copies.rows if copies.order is None else copies.rows[copies.order.sources]
    assert torch.equal(rows, reference.gather_rows(hidden, places))
    assert (copies.order is not None) == (backend == "triton")
    assert torch.equal(totals, torch.arange(16) + (1 << 40) + counts)
    assert torch.equal(sort_by_expert(hidden, ids, 16).counts, counts)


@pytest.mark.parametrize(("num_rows", "num_experts"), [(0, 5), (1, 6), (30, 6), (100, 40), (60, 3)])
@pytest.mark.parametrize("limit", [4096, 0])
def test_an_order_says_where_rows_lie_and_which_tiles_they_fill(
    triton_backend: str,
    draw: torch.Generator,
    num_rows: int,
    num_experts: int,
    limit: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On both ways, with copies for nobody; past 32 rows a tile none is made."""
    monkeypatch.setattr("kernels.permute.triton_kernel.MAX_COMPARED", limit)
    ids = torch.randint(-1, num_experts, (num_rows, 3), generator=draw).int()
    ids[: num_rows // 2] = ids[: num_rows // 2].clamp_max(1)  # several tiles of some experts, none of others
    hidden, totals = torch.randn(num_rows, 8, generator=draw), torch.zeros(num_experts, dtype=torch.int64)
    copies = sort_by_expert(hidden, ids, num_experts, totals)
    order, num_counted = copies.order, int((ids >= 0).sum())
    assert order is not None and copies.rows is hidden and torch.equal(totals, copies.counts.long())
    sorted_rows = reference.gather_rows(hidden, reference.expert_order(ids, num_experts)[1])[:num_counted]
    assert torch.equal(hidden[order.sources[:num_counted]], sorted_rows)
    has_tiles = num_rows * 3 <= limit and num_rows * 3 <= 16 * num_experts
    assert order.tile_rows == (0 if not has_tiles else 16 if num_rows * 3 <= 8 * num_experts or num_rows <= 5 else 32)
    if has_tiles:
        expected = tile_map(copies.counts, ids.numel(), order.tile_rows)
        is_tile = expected[:, 0] >= 0
        assert torch.equal(order.tiles[:, 0], expected[:, 0]) and torch.equal(order.tiles[is_tile], expected[is_tile])


def test_invariant_tiles_do_not_follow_the_number_of_rows(triton_backend: str, draw: torch.Generator) -> None:
    native.use("triton", batch_invariant=True)
    for num_rows in (1, 70):
        order = sort_by_expert(torch.zeros(num_rows, 4), random_ids(draw, num_rows, 2, 4), 4).order
        assert order is not None and order.tile_rows == 32
