"""Gate, norm, quantisation, permutation and draw against fp64."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu import exact
from benchmarks.gpu.check import Check, Sizes
from kernels.gate import GateShape, choose_and_sort, sigmoid_group_topk
from kernels.linear import PackedWeight, pack_weight
from kernels.permute import Answers, combine_rows, expert_order, gather_rows, sort_by_expert
from kernels.quantise import quantise_blocks, quantise_tokens
from kernels.quantise.formats import FP8_BLOCK, Scaling
from kernels.rms_norm import add_rms_norm, rms_norm_quantised
from kernels.sample import DrawSettings, draw_tokens

_BF16, _E4M3 = 0.008, 0.04  # of the largest magnitude: two roundings to bf16, one to e4m3 at the peak


def gate(sizes: Sizes) -> Iterator[Check]:
    """The set of experts may differ where fp64 separates two by less than fp32 can tell: rarely."""
    shape = GateShape(
        num_expert_groups=8, topk_groups=4, top_k=min(8, sizes.num_experts // 2), scale=2.5, normalise=True
    )
    hidden = torch.randn(sizes.rows, sizes.hidden).to(torch.bfloat16)
    weight, bias = (
        torch.randn(sizes.num_experts, sizes.hidden) * sizes.hidden**-0.5,
        torch.randn(sizes.num_experts) * 0.3,
    )
    ids, weights = sigmoid_group_topk(hidden, pack_weight(weight), bias, shape)
    scores = (hidden.double() @ weight.double().T).sigmoid()
    theirs = exact.choose(scores, bias, (shape.num_expert_groups, shape.topk_groups), shape.top_k)
    is_other = (ids.long().sort(1).values != theirs.sort(1).values).any(1)
    yield Check(what="rows with other experts than fp64", error=float(is_other.double().mean()), bound=0.01)
    picked = scores.gather(1, ids.long())
    yield Check.of("weights", weights, picked / picked.sum(1, keepdim=True) * shape.scale, 1e-5)
    yield from _row_alone(hidden[:1].contiguous(), pack_weight(weight), bias, shape)


def _row_alone(hidden: torch.Tensor, weight: PackedWeight, bias: torch.Tensor, shape: GateShape) -> Iterator[Check]:
    """One kernel for the choice of a row and its order, against the two of more rows."""
    totals, counted = (torch.zeros(weight.num_out, dtype=torch.int64) for _ in range(2))
    ids, weights, copies = choose_and_sort(hidden, weight, bias, shape, totals)
    true_ids, true_weights = sigmoid_group_topk(hidden, weight, bias, shape)
    truth = sort_by_expert(hidden, true_ids, weight.num_out, counted)
    assert copies is not None and copies.order is not None and truth.order is not None, "a row on a GPU is sorted"
    for what, ours, theirs in (
        ("ids", ids, true_ids),
        ("weights", weights, true_weights),
        ("load", totals, counted),
        ("counts", copies.counts, truth.counts),
        ("places", copies.places, truth.places),
        ("sources", copies.order.sources, truth.order.sources),
        ("tiles", copies.order.tiles[: shape.top_k], truth.order.tiles[: shape.top_k]),
    ):
        yield Check.equal(f"{what} of a row alone", ours, theirs)


def rms_norm(sizes: Sizes) -> Iterator[Check]:
    """After the residual sum, to bf16 and to both FP8 formats."""
    x, before = (torch.randn(sizes.rows, sizes.hidden).to(torch.bfloat16) for _ in range(2))
    weight = (1 + 0.2 * torch.randn(sizes.hidden)).to(torch.bfloat16)
    total = (x.double() + before.double()).to(torch.bfloat16)
    truth = exact.rms_norm(total, weight, 1e-6)
    residual = before.clone()
    yield Check.of("norm", add_rms_norm(residual, x, weight, 1e-6), truth, _BF16)
    yield Check.of("residual", residual, total, _BF16)
    for scaling, group in ((Scaling.BLOCKS, FP8_BLOCK), (Scaling.CHANNELS, sizes.hidden)):
        values, scales = rms_norm_quantised(x, weight, 1e-6, scaling, before.clone())
        yield Check.of(f"norm to FP8 {scaling.value}", _product(values, scales, group), truth, _E4M3 + _BF16)
    yield from _answered(before, weight)


def _answered(before: torch.Tensor, weight: torch.Tensor) -> Iterator[Check]:
    """One kernel for the experts' sum and the norm, against two."""
    num_rows, hidden = before.shape
    answers = Answers(
        torch.randn(4 * num_rows, hidden).to(torch.bfloat16),
        torch.randperm(4 * num_rows).int().view(num_rows, 4),
        torch.rand(num_rows, 4),
        torch.randn(num_rows, hidden).to(torch.bfloat16),
    )
    found = []
    for x in (answers, answers.combined()):
        residual = before.clone()
        normed = add_rms_norm(residual, x, weight, 1e-6)
        values, scales = rms_norm_quantised(x, weight, 1e-6, Scaling.BLOCKS, before.clone())
        found.append({"norm": normed, "residual": residual, "values": values.float(), "scales": scales})
    for what, ours in found[0].items():
        yield Check.equal(f"{what} after the experts' sum", ours, found[1][what])


def quantise(sizes: Sizes) -> Iterator[Check]:
    """Values times scales against what was quantised."""
    x = torch.randn(sizes.rows, sizes.hidden).to(torch.bfloat16)
    yield Check.of("blocks", _product(*quantise_blocks(x), FP8_BLOCK), x, _E4M3)
    yield Check.of("tokens", _product(*quantise_tokens(x), sizes.hidden), x, _E4M3)


def _product(values: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    product: torch.Tensor = values.double().unflatten(1, (-1, group)) * scales.double()[..., None]
    return product.flatten(1)


def permute(sizes: Sizes) -> Iterator[Check]:
    """Order and copies exactly; the weighted sum closely."""
    top_k = min(8, sizes.num_experts)
    ids = torch.rand(sizes.rows, sizes.num_experts).argsort(1)[:, :top_k].int().contiguous()
    counts, places = expert_order(ids, sizes.num_experts)
    order = ids.flatten().argsort(stable=True)
    truth = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).view_as(ids)
    yield Check.equal("counts", counts.long(), torch.bincount(ids.flatten(), minlength=sizes.num_experts))
    yield Check.equal("order", places.long(), truth)
    hidden = torch.randn(sizes.rows, sizes.hidden).to(torch.bfloat16)
    rows = gather_rows(hidden, places, places.numel())
    yield Check.equal("gathered rows", rows, hidden[order // top_k])
    weights = torch.rand(sizes.rows, top_k)
    summed = (rows.double()[truth] * weights.double()[..., None]).sum(1)
    yield Check.of("combined rows", combine_rows(rows, places, weights), summed, _BF16)


def sample(sizes: Sizes) -> Iterator[Check]:
    """How far each row's point lies outside the share of the token that it drew."""
    num_rows = min(sizes.rows, 16)
    logits, points = torch.randn(num_rows, sizes.vocab) * 3, torch.rand(num_rows, dtype=torch.float64)
    for top_k, top_p in ((0, 1.0), (20, 1.0), (0, 0.95), (20, 0.95)):
        settings = DrawSettings(
            temperature=torch.full((num_rows,), 0.6),
            top_k=torch.full((num_rows,), top_k),
            top_p=torch.full((num_rows,), top_p, dtype=torch.float64),
            min_p=torch.zeros(num_rows),
            points=points,
        )
        tokens = draw_tokens(logits, settings).tolist()
        misses = [
            exact.interval_miss(row, token, point, (0.6, top_k, top_p))
            for row, token, point in zip(logits, tokens, points.tolist(), strict=True)
        ]
        yield Check(what=f"draw, top-k {top_k}, top-p {top_p}", error=max(misses), bound=1e-5)
