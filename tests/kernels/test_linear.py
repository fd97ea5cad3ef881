"""Packed linear layers against fp64."""

from __future__ import annotations

import pytest
import torch

from kernels.linear import linear, linear_fp32_out, pack_weight

SHAPES = [(1, 1), (7, 33), (16, 2), (64, 64), (100, 96), (129, 130), (768, 512)]


def error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)) if exact.numel() else 0.0


@pytest.mark.parametrize(("num_out", "num_in"), SHAPES)
@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 7, 13, 33, 257])
def test_matches_fp64(
    backend: str, dtype: torch.dtype, draw: torch.Generator, num_rows: int, num_out: int, num_in: int
) -> None:
    weight = torch.randn(num_out, num_in, generator=draw).to(dtype)
    x = torch.randn(num_rows, num_in, generator=draw).to(dtype)
    exact = x.double() @ weight.double().T
    packed = pack_weight(weight)
    assert linear(x, packed).dtype == dtype and linear(x, packed).shape == exact.shape
    assert error(linear(x, packed), exact) < (1e-5 if dtype == torch.float32 else 8e-3)
    assert linear_fp32_out(x, packed).dtype == torch.float32
    assert error(linear_fp32_out(x, packed), exact) < 1e-5


def test_a_row_does_not_know_its_neighbours(exact_dtype: torch.dtype, draw: torch.Generator) -> None:
    packed = pack_weight(torch.randn(200, 160, generator=draw).to(exact_dtype))
    x = torch.randn(400, 160, generator=draw).to(exact_dtype)
    whole = linear_fp32_out(x, packed)
    for rows in (slice(0, 1), slice(3, 10), slice(191, 230), slice(399, 400)):
        assert torch.equal(linear_fp32_out(x[rows].contiguous(), packed), whole[rows])


def test_nan_stays_in_its_row(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    packed = pack_weight(torch.randn(96, 64, generator=draw).to(dtype))
    x = torch.randn(40, 64, generator=draw).to(dtype)
    x[17] = float("nan")
    is_nan = linear(x, packed).isnan()
    assert is_nan[17].all() and not is_nan[torch.arange(40) != 17].any()


def test_the_weight_is_not_kept(backend: str, dtype: torch.dtype) -> None:
    weight = torch.ones(4, 4, dtype=dtype)
    packed = pack_weight(weight)
    weight.zero_()
    assert (linear(torch.ones(1, 4, dtype=dtype), packed) == 4).all()


def test_wrong_shapes_are_named(backend: str) -> None:
    packed = pack_weight(torch.ones(4, 8))
    with pytest.raises(AssertionError, match=r"x is \[2, 7\], weight takes 8"):
        linear(torch.ones(2, 7), packed)
    with pytest.raises(AssertionError, match="bfloat16"):
        linear(torch.ones(2, 8, dtype=torch.bfloat16), packed)
