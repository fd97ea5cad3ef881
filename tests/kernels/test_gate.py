"""The choice of experts against its formula, with ties and NaNs."""

from __future__ import annotations

import pytest
import torch

from kernels import native
from kernels.gate import GateShape, choose_and_sort, sigmoid_group_topk
from kernels.gate.tiles import gate_tile, invariant_tile
from kernels.linear import pack_weight
from kernels.permute import SortedCopies, sort_by_expert

SMALL = GateShape(num_expert_groups=4, topk_groups=2, top_k=4, scale=2.5, normalise=True)
LARGE = GateShape(num_expert_groups=8, topk_groups=4, top_k=8, scale=2.5, normalise=True)


def exact(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shape: GateShape
) -> tuple[list[list[int]], list[list[float]]]:
    """One row after the other, in Python."""
    ids, weights = [], []
    for scores in torch.sigmoid(hidden.double() @ weight.double().T):
        biased = (scores + bias.double()).tolist()
        size = len(biased) // shape.num_expert_groups
        groups = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(shape.num_expert_groups)]
        kept = sorted(range(len(groups)), key=lambda g: (-groups[g], g))[: shape.topk_groups]
        allowed = [e for g in kept for e in range(g * size, (g + 1) * size)]
        chosen = sorted(allowed, key=lambda e: (-biased[e], e))[: shape.top_k]
        total = sum(float(scores[e]) for e in chosen) if shape.normalise else 1.0
        ids.append(chosen)
        weights.append([float(scores[e]) / total * shape.scale for e in chosen])
    return ids, weights


@pytest.mark.parametrize(
    ("num_experts", "hidden_size", "shape"), [(16, 32, SMALL), (256, 100, LARGE), (64, 300, LARGE)]
)
@pytest.mark.parametrize("num_rows", [0, 1, 7, 19])
def test_matches_the_formula(
    backend: str, draw: torch.Generator, num_experts: int, hidden_size: int, shape: GateShape, num_rows: int
) -> None:
    weight = torch.randn(num_experts, hidden_size, generator=draw) / hidden_size**0.5
    bias = 0.3 * torch.randn(num_experts, generator=draw)
    hidden = torch.randn(num_rows, hidden_size, generator=draw)
    ids, weights = sigmoid_group_topk(hidden, pack_weight(weight), bias, shape)
    true_ids, true_weights = exact(hidden, weight, bias, shape)
    assert ids.dtype == torch.int32 and ids.tolist() == true_ids
    torch.testing.assert_close(weights, torch.tensor(true_weights).view(num_rows, shape.top_k), rtol=1e-5, atol=1e-6)


def test_bf16_rows_are_scored_in_fp32(backend: str, draw: torch.Generator) -> None:
    weight, hidden = torch.randn(16, 32, generator=draw), torch.randn(9, 32, generator=draw).to(torch.bfloat16)
    packed, bias = pack_weight(weight), torch.zeros(16)
    for ours, theirs in zip(
        sigmoid_group_topk(hidden, packed, bias, SMALL),
        sigmoid_group_topk(hidden.float(), packed, bias, SMALL),
        strict=True,
    ):
        if backend == "triton":  # the tensor cores add in another order
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        else:
            assert torch.equal(ours, theirs)


def router_like(
    draw: torch.Generator, num_rows: int, num_experts: int = 64, width: int = 1100
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states in bf16 and weights in fp32 whose logits are of the order of one."""
    hidden = torch.randn(num_rows, width, generator=draw).to(torch.bfloat16)
    return hidden, torch.randn(num_experts, width, generator=draw) / width**0.5


@pytest.mark.parametrize("num_rows", [3, 20, 130], ids=["few", "decode", "prefill"])
def test_logits_of_bf16_rows_are_as_exact_as_fp32(triton_backend: str, draw: torch.Generator, num_rows: int) -> None:
    from kernels.gate.logits import partial_logits  # Triton is imported where it runs

    hidden, weight = router_like(draw, num_rows)
    truth = hidden.double() @ weight.double().T
    error = (partial_logits(hidden, weight).sum(0) - truth).square().mean().sqrt()
    assert error <= 2 * (hidden.float() @ weight.T - truth).square().mean().sqrt()


@pytest.mark.parametrize("num_rows", [3, 20, 130], ids=["few", "decode", "prefill"])
def test_bf16_rows_choose_what_fp64_does(triton_backend: str, draw: torch.Generator, num_rows: int) -> None:
    hidden, weight = router_like(draw, num_rows)
    bias = 0.3 * torch.randn(64, generator=draw)
    ids, _ = sigmoid_group_topk(hidden, pack_weight(weight), bias, LARGE)
    is_clear = margins(hidden, weight, bias, LARGE) > 1e-6
    true_ids = torch.tensor(exact(hidden, weight, bias, LARGE)[0], dtype=torch.int32)
    assert is_clear.double().mean() > 0.9 and torch.equal(ids[is_clear], true_ids[is_clear])


def margins(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shape: GateShape) -> torch.Tensor:
    """By how much each row's choice, and its order, is decided: the least difference that matters."""
    biased = (hidden.double() @ weight.double().T).sigmoid() + bias.double()
    groups = biased.unflatten(1, (shape.num_expert_groups, -1))
    scores, order = groups.topk(2, -1).values.sum(-1).sort(descending=True)
    allowed = groups.take_along_dim(order[:, : shape.topk_groups, None], 1).flatten(1)
    best = allowed.topk(shape.top_k + 1).values
    between_groups = scores[:, shape.topk_groups - 1] - scores[:, shape.topk_groups]
    return torch.minimum(between_groups, (best[:, :-1] - best[:, 1:]).min(1).values)


def test_tiles_fill_a_device_and_keep_partial_sums_small() -> None:
    for rows in (1, 4, 5, 128, 512, 1024, 2048, 4096, 8192):
        tile = gate_tile(rows, itemsize=2)
        splits = tile.num_splits(4096)
        assert -(-rows // tile.block_rows) * 256 // tile.block_experts * splits == 128, (rows, tile)
        assert splits * rows <= 8192, (rows, tile)


@pytest.mark.parametrize("width", [1, 72, 2048, 4096, 5120])
def test_splits_cover_the_channels(width: int) -> None:
    for tile in (*(gate_tile(rows, itemsize) for rows in (1, 5, 999) for itemsize in (2, 4)), invariant_tile(2)):
        step, splits = tile.split_width(width), tile.num_splits(width)
        assert step % tile.block_width == 0 and (splits - 1) * step < width <= splits * step, (width, tile)


def test_ties_go_to_the_lower_id(backend: str) -> None:
    ids, weights = sigmoid_group_topk(torch.ones(3, 8), pack_weight(torch.zeros(16, 8)), torch.zeros(16), SMALL)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(weights.sum(1), torch.full((3,), 2.5))


def test_without_normalisation_weights_are_the_scores(backend: str) -> None:
    shape = GateShape(num_expert_groups=4, topk_groups=2, top_k=4, scale=2.0, normalise=False)
    _, weights = sigmoid_group_topk(torch.ones(1, 8), pack_weight(torch.zeros(16, 8)), torch.zeros(16), shape)
    torch.testing.assert_close(weights, torch.ones(1, 4))


def test_nan_stays_in_its_row_and_ids_stay_valid(backend: str, draw: torch.Generator, dtype: torch.dtype) -> None:
    packed, hidden = pack_weight(torch.randn(16, 32, generator=draw)), torch.randn(20, 32, generator=draw).to(dtype)
    hidden[5] = float("nan")
    ids, weights = sigmoid_group_topk(hidden, packed, torch.zeros(16), SMALL)
    assert weights[5].isnan().all() and not weights[torch.arange(20) != 5].isnan().any()
    assert len(set(ids[5].tolist())) == 4 and int(ids.min()) >= 0 and int(ids.max()) < 16


def test_a_row_does_not_know_its_neighbours(backend: str, draw: torch.Generator) -> None:
    if backend != "native":
        pytest.skip("promised by the native kernels; by Triton's in batch-invariant mode")
    packed, bias = pack_weight(torch.randn(16, 72, generator=draw)), 0.3 * torch.randn(16, generator=draw)
    hidden = torch.randn(29, 72, generator=draw)
    for first in (0, 28):
        alone = sigmoid_group_topk(hidden[first : first + 1], packed, bias, SMALL)
        for whole, one in zip(sigmoid_group_topk(hidden, packed, bias, SMALL), alone, strict=True):
            assert torch.equal(whole[first : first + 1], one)


def test_rows_that_are_padding_choose_nobody(backend: str, draw: torch.Generator) -> None:
    packed, bias = pack_weight(torch.randn(16, 72, generator=draw)), 0.3 * torch.randn(16, generator=draw)
    hidden, is_live = torch.randn(5, 72, generator=draw), torch.tensor([True, False, True, True, False])
    whole, ids = (sigmoid_group_topk(hidden, packed, bias, SMALL, live)[0] for live in (None, is_live))
    assert ids.dtype == torch.int32 and torch.equal(ids, torch.where(is_live[:, None], whole, -1))


@pytest.mark.parametrize(
    ("num_experts", "shape"),
    [
        (256, LARGE),
        (16, SMALL),
        (30, GateShape(num_expert_groups=3, topk_groups=2, top_k=5, scale=2.5, normalise=False)),
        (3, GateShape(num_expert_groups=1, topk_groups=1, top_k=3, scale=1.0, normalise=True)),
        (64, GateShape(num_expert_groups=8, topk_groups=8, top_k=35, scale=1.0, normalise=True)),  # tiles are left over
    ],
)
@pytest.mark.parametrize("live", [None, True, False], ids=["live or not", "live", "padding"])
@pytest.mark.parametrize("is_invariant", [False, True], ids=["", "invariant"])
def test_a_row_alone_is_sorted_with_its_choice(
    triton_backend: str,
    draw: torch.Generator,
    num_experts: int,
    shape: GateShape,
    live: bool | None,
    is_invariant: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by the kernels of the choice and of the order, none of which runs: every bit but what means nothing."""
    native.use("triton", batch_invariant=is_invariant)
    packed, bias = pack_weight(torch.randn(num_experts, 72, generator=draw)), torch.randn(num_experts, generator=draw)
    hidden = torch.randn(1, 72, generator=draw).to(torch.bfloat16)
    is_live = None if live is None else torch.tensor([live])
    before = torch.arange(num_experts) + (1 << 40)
    true_ids, true_weights = sigmoid_group_topk(hidden, packed, bias, shape, is_live)
    expected, true_totals = sort_by_expert(hidden, true_ids, num_experts, totals := before.clone()), totals
    monkeypatch.delattr("kernels.gate.triton_kernel.choose_kernel")
    monkeypatch.delattr("kernels.permute.triton_kernel.compare_kernel")
    totals = before.clone()
    ids, weights, copies = choose_and_sort(hidden, packed, bias, shape, totals, is_live)
    assert torch.equal(ids, true_ids) and torch.equal(weights, true_weights) and torch.equal(totals, true_totals)
    assert copies is not None and copies.rows is hidden
    assert_same_order(copies, expected)


def assert_same_order(found: SortedCopies, expected: SortedCopies) -> None:
    """But for what stands behind the copies that are counted, and beside tiles of no expert."""
    assert torch.equal(found.counts, expected.counts) and torch.equal(found.places, expected.places)
    assert found.order is not None and expected.order is not None
    num_counted, is_tile = int(expected.counts.sum()), expected.order.tiles[:, 0] >= 0
    assert torch.equal(found.order.sources[:num_counted], expected.order.sources[:num_counted])
    assert found.order.tile_rows == expected.order.tile_rows
    assert torch.equal(found.order.tiles[:, 0], expected.order.tiles[:, 0])
    assert torch.equal(found.order.tiles[is_tile], expected.order.tiles[is_tile])


def test_more_rows_are_not_sorted_with_their_choice(backend: str, draw: torch.Generator) -> None:
    packed, bias = pack_weight(torch.randn(16, 72, generator=draw)), torch.randn(16, generator=draw)
    for num_rows in (0, 2) if backend == "triton" else (0, 1, 2):
        hidden, totals = torch.randn(num_rows, 72, generator=draw), torch.zeros(16, dtype=torch.int64)
        ids, weights, copies = choose_and_sort(hidden, packed, bias, SMALL, totals)
        assert copies is None and not totals.any()
        for ours, theirs in zip((ids, weights), sigmoid_group_topk(hidden, packed, bias, SMALL), strict=True):
            assert torch.equal(ours, theirs)
