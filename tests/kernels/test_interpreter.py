"""The interpreter that the Triton kernels are tested in rounds as torch does."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

if not triton.knobs.runtime.interpret:
    pytest.skip("Triton compiles here", allow_module_level=True)

from .interpreter import repair


@pytest.fixture(autouse=True)
def repaired() -> None:
    repair()


@triton.jit  # type: ignore[untyped-decorator]
def _cast(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _matmul(a, b, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), out_dtype=tl.float32))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float8_e4m3fn, torch.float16], ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=str)
def test_casts_round_to_nearest_even(source: torch.dtype, target: torch.dtype, draw: torch.Generator) -> None:
    scales = 2.0 ** torch.arange(-12, 9).repeat_interleave(96)
    spread = torch.randn(2016, generator=draw) * scales
    edges = torch.tensor([0.0, -0.0, 7.9, 7.75, 2.0**-10, 3 * 2.0**-10, 448.0, 463.0, 465.0, -1e4, 1.0, 0.1])
    x = torch.cat([spread, edges, torch.tensor([float("nan")] * 20)]).to(source)
    out = torch.empty(2048, dtype=target)
    _cast[(1,)](x, out, SIZE=2048)
    assert torch.equal(out.float().nan_to_num(nan=1e9), x.to(target).float().nan_to_num(nan=1e9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32], ids=str)
def test_products_are_of_values(dtype: torch.dtype, draw: torch.Generator) -> None:
    a, b = (torch.randn(16, 16, generator=draw).to(dtype) for _ in range(2))
    out = torch.empty(16, 16)
    _matmul[(1,)](a, b, out, SIZE=16)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-6, atol=1e-5)


def test_a_row_of_a_product_does_not_depend_on_its_place(draw: torch.Generator) -> None:
    a, b = torch.randn(64, 64, generator=draw), torch.randn(64, 64, generator=draw)
    turned = torch.randperm(64, generator=draw)
    out, other = torch.empty(64, 64), torch.empty(64, 64)
    _matmul[(1,)](a, b, out, SIZE=64)
    _matmul[(1,)](a[turned].contiguous(), b, other, SIZE=64)
    assert torch.equal(out[turned], other)
