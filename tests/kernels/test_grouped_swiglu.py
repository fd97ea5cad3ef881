"""The experts against fp64."""

from __future__ import annotations

import pytest
import torch

from kernels.grouped_swiglu import (
    MOST_COUNTED_ROWS,
    PackedExperts,
    allocate_experts,
    allocate_fp8_experts,
    fill_expert,
    fill_fp8_expert,
    grouped_swiglu,
    pack_experts,
)
from kernels.linear import Fp8Rows
from kernels.permute import sort_by_expert
from kernels.quantise import quantise_blocks, quantise_tokens
from kernels.quantise.formats import Scaling

from .test_linear import exact_fp8 as exact_fp8_linear

Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def weights(draw: torch.Generator, num_experts: int, hidden: int, inner: int, dtype: torch.dtype) -> Weights:
    shapes = ((num_experts, inner, hidden), (num_experts, inner, hidden), (num_experts, hidden, inner))
    gate, up, down = ((torch.randn(shape, generator=draw) * 0.2).to(dtype) for shape in shapes)
    return gate, up, down


def exact(rows: torch.Tensor, counts: list[int], w: Weights) -> torch.Tensor:
    gate, up, down = (part.double() for part in w)
    pieces = rows.double().split(counts)
    return torch.cat(
        [(torch.nn.functional.silu(x @ gate[e].T) * (x @ up[e].T)) @ down[e].T for e, x in enumerate(pieces)]
    )


@pytest.mark.parametrize(("hidden", "inner"), [(64, 32), (33, 17), (96, 48), (128, 256)])
@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 1, 1], [0, 0, 41], [200, 1, 0], [7, 13, 3]])
def test_matches_fp64(
    backend: str, dtype: torch.dtype, draw: torch.Generator, counts: list[int], hidden: int, inner: int
) -> None:
    w = weights(draw, 3, hidden, inner, dtype)
    rows = torch.randn(sum(counts), hidden, generator=draw).to(dtype)
    out = grouped_swiglu(rows, torch.tensor(counts, dtype=torch.int32), pack_experts(*w))
    assert out.dtype == dtype and out.shape == rows.shape
    if len(rows):
        truth = exact(rows, counts, w)
        assert (out.double() - truth).abs().max() / truth.abs().max() < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_row_does_not_know_its_neighbours(exact_dtype: torch.dtype, draw: torch.Generator) -> None:
    packed = pack_experts(*weights(draw, 2, 96, 80, exact_dtype))
    rows = torch.randn(250, 96, generator=draw).to(exact_dtype)
    whole = grouped_swiglu(rows, torch.tensor([0, 250], dtype=torch.int32), packed)
    for part in (slice(0, 1), slice(5, 18), slice(190, 231)):
        count = torch.tensor([0, part.stop - part.start], dtype=torch.int32)
        assert torch.equal(grouped_swiglu(rows[part].contiguous(), count, packed), whole[part])


def test_nan_stays_in_its_row(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    packed = pack_experts(*weights(draw, 2, 64, 64, dtype))
    rows = torch.randn(40, 64, generator=draw).to(dtype)
    rows[20] = float("nan")
    is_nan = grouped_swiglu(rows, torch.tensor([18, 22], dtype=torch.int32), packed).isnan()
    assert is_nan[20].all() and not is_nan[torch.arange(40) != 20].any()


def test_huge_inputs_saturate_as_the_formula_does(backend: str) -> None:
    gate, up, down = torch.full((1, 2, 2), 1e4), torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    out = grouped_swiglu(rows, torch.tensor([2], dtype=torch.int32), pack_experts(gate, up, down))
    torch.testing.assert_close(out, torch.tensor([[8e4, 8e4], [0.0, 0.0]]))


def test_experts_can_be_filled_in_any_order(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    gate, up, down = weights(draw, 3, 64, 48, dtype)
    packed: PackedExperts = allocate_experts(3, 64, 48, dtype)
    for index in (2, 0, 1):
        fill_expert(packed, index, gate[index], up[index], down[index])
    rows, counts = torch.randn(6, 64, generator=draw).to(dtype), torch.tensor([2, 2, 2], dtype=torch.int32)
    assert torch.equal(grouped_swiglu(rows, counts, packed), grouped_swiglu(rows, counts, pack_experts(gate, up, down)))
    with pytest.raises(AssertionError, match=r"up is \[48, 63\], not \[48, 64\]"):
        fill_expert(packed, 0, gate[0], up[0, :, 1:], down[0])


def fp8_experts(draw: torch.Generator, num_experts: int, hidden: int, inner: int, scaling: Scaling) -> PackedExperts:
    experts = allocate_fp8_experts(num_experts, hidden, inner, torch.float32, scaling)
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    for index in range(num_experts):
        gate, up, down = ((torch.randn(shape, generator=draw) * 4).to(torch.float8_e4m3fn) for shape in shapes)
        scales = [(torch.rand(scaling.weight_shape(*shape), generator=draw) + 0.5) / 40 for shape in shapes]
        fill_fp8_expert(experts, index, (gate, up, down), (scales[0], scales[1], scales[2]))
    return experts


def exact_fp8(rows: torch.Tensor, counts: list[int], experts: PackedExperts, scaling: Scaling) -> torch.Tensor:
    assert experts.scales is not None
    pieces = []
    for expert, x in enumerate(rows.split(counts)):
        parts = [
            exact_fp8_linear(x, experts.gate_up[expert, part], experts.scales[0][expert, part], scaling)
            for part in range(2)
        ]
        inner = (torch.nn.functional.silu(parts[0]) * parts[1]).float()
        pieces.append(exact_fp8_linear(inner, experts.down[expert], experts.scales[1][expert], scaling))
    return torch.cat(pieces)


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
@pytest.mark.parametrize(("hidden", "inner"), [(128, 128), (96, 48), (256, 160)])
@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 1, 1], [0, 0, 41], [140, 1, 0]])
def test_fp8_matches_its_formula(
    gpu_backend: str, draw: torch.Generator, counts: list[int], hidden: int, inner: int, scaling: Scaling
) -> None:
    experts = fp8_experts(draw, 3, hidden, inner, scaling)
    rows = torch.randn(sum(counts), hidden, generator=draw)
    out = grouped_swiglu(rows, torch.tensor(counts, dtype=torch.int32), experts)
    assert out.shape == rows.shape
    if len(rows):
        truth = exact_fp8(rows, counts, experts, scaling)
        error = (out.double() - truth).abs() / truth.abs().max()
        # What falls on the edge between two e4m3 numbers may go either way, seldom, and moves the sums of its row.
        assert error.median() < 1e-6 and error.max() < 5e-3


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
def test_nan_stays_in_its_row_of_fp8(gpu_backend: str, draw: torch.Generator, scaling: Scaling) -> None:
    experts = fp8_experts(draw, 2, 256, 160, scaling)
    rows = torch.randn(40, 256, generator=draw)
    rows[20, 3] = float("nan")
    is_nan = grouped_swiglu(rows, torch.tensor([18, 22], dtype=torch.int32), experts).isnan()
    assert is_nan[20].all() and not is_nan[torch.arange(40) != 20].any()


def test_fp8_experts_want_their_scales() -> None:
    experts = allocate_fp8_experts(1, 128, 128, torch.float32, Scaling.BLOCKS)
    weight = torch.zeros(128, 128).to(torch.float8_e4m3fn)
    with pytest.raises(AssertionError, match=r"scales are \[128, 1\], not \[1, 1\]"):
        fill_fp8_expert(experts, 0, (weight,) * 3, (torch.ones(128, 1),) * 3)
    with pytest.raises(AssertionError, match="fill_fp8_expert"):
        fill_expert(experts, 0, weight, weight, weight)


def test_many_experts_with_few_rows_read_theirs_alone(triton_backend: str, draw: torch.Generator) -> None:
    """A decode: 40 experts, 5 with rows; the weights of the others are NaN."""
    gate, up, down = weights(draw, 40, 32, 16, torch.float32)
    counts = torch.zeros(40, dtype=torch.int32)
    counts[torch.tensor([0, 7, 8, 31, 39])] = torch.tensor([1, 2, 17, 1, 3], dtype=torch.int32)
    for weight in (gate, up, down):
        weight[counts == 0] = float("nan")
    rows = torch.randn(24, 32, generator=draw)
    out = grouped_swiglu(rows, counts, pack_experts(gate, up, down))
    truth = exact(rows, counts.tolist(), (gate, up, down))
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 32, 40])
def test_rows_behind_those_that_are_counted_are_not_computed(
    triton_backend: str, draw: torch.Generator, count: int
) -> None:
    parts = weights(draw, 1, 32, 16, torch.float32)
    rows, counts = torch.randn(40, 32, generator=draw), torch.tensor([count], dtype=torch.int32)
    out = grouped_swiglu(rows, counts, pack_experts(*parts))
    truth = exact(rows[:count], [count], parts)
    torch.testing.assert_close(out[:count].double(), truth, rtol=1e-5, atol=1e-5)
    assert out[count:].isnan().all()


@pytest.mark.parametrize("num_rows", [0, 1, 40])
def test_without_counts_all_rows_are_the_only_experts(
    backend: str, dtype: torch.dtype, draw: torch.Generator, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, rows = pack_experts(*weights(draw, 1, 96, 48, dtype)), torch.randn(num_rows, 96, generator=draw).to(dtype)
    counted = grouped_swiglu(rows, torch.tensor([num_rows], dtype=torch.int32), packed)
    if backend == "triton":
        monkeypatch.delattr("kernels.grouped_swiglu.triton_kernel.tile_map")  # and need no map
    assert torch.equal(grouped_swiglu(rows, None, packed), counted)
    with pytest.raises(AssertionError, match="2 experts without counts"):
        grouped_swiglu(rows, None, pack_experts(*weights(draw, 2, 96, 48, dtype)))


@pytest.mark.parametrize("num_rows", [1, 9, 60])
@pytest.mark.parametrize("scaling", list(Scaling))
def test_rows_are_read_from_where_they_lie(
    triton_backend: str, draw: torch.Generator, scaling: Scaling, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an order that has tiles and by one that has none, with copies for nobody: as if rows were copied into it."""
    none = scaling is Scaling.NONE
    experts = pack_experts(*weights(draw, 5, 96, 48, torch.float32)) if none else fp8_experts(draw, 5, 96, 48, scaling)
    hidden, ids = torch.randn(num_rows, 96, generator=draw), torch.randint(-1, 5, (num_rows, 2), generator=draw).int()
    ids[0] = torch.tensor([4, 1])
    for limit in (4096, 0):
        monkeypatch.setattr("kernels.permute.triton_kernel.MAX_COMPARED", limit)
        copies = sort_by_expert(hidden, ids, 5)
        assert copies.order is not None
        sources = copies.order.sources.clamp(0, num_rows - 1)  # those of nobody's copies are not written
        sources[int(copies.counts.sum()) :] = 0
        out = grouped_swiglu(hidden, copies.counts, experts, copies.order)
        truth = grouped_swiglu(hidden[sources], copies.counts, experts)
        counted = slice(int(copies.counts.sum()))
        assert out.shape == (2 * num_rows, 96) and torch.equal(out[counted], truth[counted])


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
def test_rows_may_come_quantised(triton_backend: str, draw: torch.Generator, scaling: Scaling) -> None:
    experts = fp8_experts(draw, 2, 256, 160, scaling)
    rows, counts = torch.randn(40, 256, generator=draw), torch.tensor([18, 22], dtype=torch.int32)
    quantise = quantise_blocks if scaling is Scaling.BLOCKS else quantise_tokens
    found = grouped_swiglu(torch.zeros_like(rows), counts, experts, quantised=Fp8Rows(*quantise(rows)))
    assert torch.equal(found, grouped_swiglu(rows, counts, experts))


@pytest.mark.parametrize("is_live", [True, False])
def test_a_token_alone_needs_no_tensor_core(triton_backend: str, draw: torch.Generator, is_live: bool) -> None:
    """Its experts in any order of their ids, in FP8 blocks: as the formula has it, also where one is nobody's."""
    experts = fp8_experts(draw, 5, 1024, 2048, Scaling.BLOCKS)
    hidden, ids = torch.randn(1, 1024, generator=draw), torch.tensor([[3, 0 if is_live else -1, 4]], dtype=torch.int32)
    copies = sort_by_expert(hidden, ids, 5)
    assert copies.order is not None
    for quantised in (None, Fp8Rows(*quantise_blocks(hidden))):
        out = grouped_swiglu(hidden, copies.counts, experts, copies.order, quantised)
        truth = exact_fp8(hidden.expand(int(copies.counts.sum()), -1), copies.counts.tolist(), experts, Scaling.BLOCKS)
        error = (out[: len(truth)].double() - truth).abs() / truth.abs().max()
        assert error.median() < 1e-6 and error.max() < 5e-3 and out[len(truth) :].isnan().all()


def test_a_row_alone_of_the_only_expert_needs_no_tensor_core(triton_backend: str, draw: torch.Generator) -> None:
    experts, hidden = fp8_experts(draw, 1, 1024, 1024, Scaling.BLOCKS), torch.randn(1, 1024, generator=draw)
    out, truth = grouped_swiglu(hidden, None, experts), exact_fp8(hidden, [1], experts, Scaling.BLOCKS)
    error = (out.double() - truth).abs() / truth.abs().max()
    assert error.median() < 1e-6 and error.max() < 5e-3
    hidden[0, 300] = float("nan")
    assert grouped_swiglu(hidden, None, experts).isnan().all()


def test_whose_experts_need_no_tensor_core() -> None:
    takes = pytest.importorskip("kernels.grouped_swiglu.vector_kernel").takes
    assert takes(1, MOST_COUNTED_ROWS, 4096, 1024, Scaling.BLOCKS)
    assert not takes(1, MOST_COUNTED_ROWS + 1, 4096, 1024, Scaling.BLOCKS)  # more than there are counters for
    assert not takes(2, 16, 4096, 1024, Scaling.BLOCKS) and not takes(1, 8, 4096, 1000, Scaling.BLOCKS)
    assert not takes(1, 8, 4096, 1024, Scaling.CHANNELS)
