"""RMSNorm against fp64."""

from __future__ import annotations

import pytest
import torch

from kernels.rms_norm import add_rms_norm, rms_norm

EPS = 1e-6


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    u = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPS)
    return weight.double() * u


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (1, 64), (3, 100), (129, 17), (40, 512)])
def test_matches_fp64(backend: str, dtype: torch.dtype, draw: torch.Generator, shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape, generator=draw).to(dtype), torch.randn(shape[1], generator=draw).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1.2e-2
    torch.testing.assert_close(rms_norm(x, weight, EPS).double(), exact(x, weight), rtol=tolerance, atol=tolerance)


def test_the_weight_multiplies_after_the_cast(backend: str) -> None:
    # u = 1.0039...: rounded to bf16 first it is 1.0, and the weight's product is exact.
    x = torch.tensor([[1.0, 1.0, 1.0, 1.015625]], dtype=torch.bfloat16)
    weight = torch.full((4,), 3.0, dtype=torch.bfloat16)
    u = (x.float() * torch.rsqrt(x.float().square().mean() + EPS)).to(torch.bfloat16)
    assert torch.equal(rms_norm(x, weight, EPS), weight * u)


def test_adding_happens_in_place_and_is_rounded(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    residual, x = (torch.randn(37, 72, generator=draw).to(dtype) for _ in range(2))
    weight = torch.randn(72, generator=draw).to(dtype)
    total = residual + x
    out = add_rms_norm(residual, x, weight, EPS)
    assert torch.equal(residual, total)
    assert torch.equal(out, rms_norm(total, weight, EPS))


def test_rows_are_their_own(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    x, weight = torch.randn(300, 96, generator=draw).to(dtype), torch.ones(96, dtype=dtype)
    assert torch.equal(rms_norm(x[7:8].contiguous(), weight, EPS), rms_norm(x, weight, EPS)[7:8])
    x[11, 3] = float("nan")
    is_nan = rms_norm(x, weight, EPS).isnan()
    assert is_nan[11].all() and not is_nan[torch.arange(300) != 11].any()


def test_wrong_shapes_are_named(backend: str) -> None:
    with pytest.raises(AssertionError, match=r"x is \[2, 8\], weight \[7\]"):
        rms_norm(torch.ones(2, 8), torch.ones(7), EPS)
