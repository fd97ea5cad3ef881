"""The experts against fp64."""

from __future__ import annotations

import pytest
import torch

from kernels.grouped_swiglu import PackedExperts, allocate_experts, fill_expert, grouped_swiglu, pack_experts

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
