"""The choice of experts against its formula, with ties and NaNs."""

from __future__ import annotations

import pytest
import torch

from kernels.gate import GateShape, sigmoid_group_topk
from kernels.linear import pack_weight

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


@pytest.mark.parametrize(("num_experts", "hidden_size", "shape"), [(16, 32, SMALL), (256, 100, LARGE), (64, 64, LARGE)])
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
        assert torch.equal(ours, theirs)


def test_ties_go_to_the_lower_id(backend: str) -> None:
    ids, weights = sigmoid_group_topk(torch.ones(3, 8), pack_weight(torch.zeros(16, 8)), torch.zeros(16), SMALL)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(weights.sum(1), torch.full((3,), 2.5))


def test_without_normalisation_weights_are_the_scores(backend: str) -> None:
    shape = GateShape(num_expert_groups=4, topk_groups=2, top_k=4, scale=2.0, normalise=False)
    _, weights = sigmoid_group_topk(torch.ones(1, 8), pack_weight(torch.zeros(16, 8)), torch.zeros(16), shape)
    torch.testing.assert_close(weights, torch.ones(1, 4))


def test_nan_stays_in_its_row_and_ids_stay_valid(backend: str, draw: torch.Generator) -> None:
    packed, hidden = pack_weight(torch.randn(16, 32, generator=draw)), torch.randn(20, 32, generator=draw)
    hidden[5] = float("nan")
    ids, weights = sigmoid_group_topk(hidden, packed, torch.zeros(16), SMALL)
    assert weights[5].isnan().all() and not weights[torch.arange(20) != 5].isnan().any()
    assert len(set(ids[5].tolist())) == 4 and int(ids.min()) >= 0 and int(ids.max()) < 16


def test_a_row_does_not_know_its_neighbours(backend: str, draw: torch.Generator) -> None:
    if backend in ("torch", "native+amx"):
        pytest.skip("promised by the native and the Triton kernels")
    packed, bias = pack_weight(torch.randn(16, 72, generator=draw)), 0.3 * torch.randn(16, generator=draw)
    hidden = torch.randn(29, 72, generator=draw)
    for first in (0, 28):
        alone = sigmoid_group_topk(hidden[first : first + 1], packed, bias, SMALL)
        for whole, one in zip(sigmoid_group_topk(hidden, packed, bias, SMALL), alone, strict=True):
            assert torch.equal(whole[first : first + 1], one)
