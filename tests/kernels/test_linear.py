"""Packed linear layers against fp64."""

from __future__ import annotations

import pytest
import torch

from kernels.linear import Fp8Rows, linear, linear_fp32_out, linear_of_fp8, pack_fp8_weight, pack_weight
from kernels.linear.tiles import num_splits
from kernels.linear.vector_kernel import takes as takes_vector
from kernels.quantise.formats import Scaling
from kernels.quantise.reference import quantise_blocks, quantise_tokens
from kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_quantised

SHAPES = [(1, 1), (7, 33), (16, 2), (64, 64), (100, 96), (129, 130), (768, 512)]


def error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)) if exact.numel() else 0.0


@pytest.mark.parametrize(("num_out", "num_in"), SHAPES)
@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 7, 13, 33, 257])
def test_matches_fp64(
    backend: str, dtype: torch.dtype, draw: torch.Generator, num_rows: int, num_out: int, num_in: int
) -> None:
    if backend == "triton" and (
        num_rows in (2, 5, 7) or num_rows * num_out > 35_000 or (num_out == 768 and num_rows != 13)
    ):
        pytest.skip("the interpreter is slow, and other cases choose the same tiles")
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


def test_weights_begin_where_kernels_can_ask_for_them(draw: torch.Generator) -> None:
    stored = torch.randn(8 + 4 * 16, generator=draw).to(torch.float8_e4m3fn)
    weight = stored[8:].view(4, 16)
    packed = pack_fp8_weight(weight, torch.ones(4, 1), torch.float32)
    assert weight.data_ptr() % 16 == 8 and packed.data.data_ptr() % 16 == 0
    assert torch.equal(packed.data.float(), weight.float())


def test_wrong_shapes_are_named(backend: str) -> None:
    packed = pack_weight(torch.ones(4, 8))
    with pytest.raises(AssertionError, match=r"x is \[2, 7\], weight takes 8"):
        linear(torch.ones(2, 7), packed)
    with pytest.raises(AssertionError, match="bfloat16"):
        linear(torch.ones(2, 8, dtype=torch.bfloat16), packed)


def fp8_weight(draw: torch.Generator, num_out: int, num_in: int, scaling: Scaling) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(num_out, num_in, generator=draw).to(torch.float8_e4m3fn)
    return weight, torch.rand(scaling.weight_shape(num_out, num_in), generator=draw) + 0.5


def exact_fp8(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """y[m, n] = sum over blocks kb of sx[m, kb] * sw[n, kb] * (sum over k in kb of xq * Wq), model-spec §4."""
    values, x_scale = quantise_blocks(x) if scaling is Scaling.BLOCKS else quantise_tokens(x)
    out = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for start in range(0, x.shape[1], 128):
        part = values[:, start : start + 128].double() @ weight[:, start : start + 128].double().T
        block = start // 128 if scaling is Scaling.BLOCKS else 0
        by_out = scale[:, block].repeat_interleave(128 if scaling is Scaling.BLOCKS else 1)[: len(weight)]
        out += part * x_scale[:, block, None].double() * by_out.double()
    return out


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
@pytest.mark.parametrize(("num_out", "num_in"), [(128, 128), (64, 320), (257, 130), (16, 32)])
@pytest.mark.parametrize("num_rows", [0, 1, 31, 101])
def test_fp8_matches_its_formula(
    gpu_backend: str, draw: torch.Generator, num_rows: int, num_out: int, num_in: int, scaling: Scaling
) -> None:
    weight, scale = fp8_weight(draw, num_out, num_in, scaling)
    x = torch.randn(num_rows, num_in, generator=draw) * torch.logspace(-3, 3, num_in)
    packed = pack_fp8_weight(weight, scale, torch.float32)
    out = linear(x, packed)
    assert out.dtype == torch.float32 and out.shape == (num_rows, num_out)
    assert error(out, exact_fp8(x, weight, scale, scaling)) < 1e-6


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
def test_nan_stays_in_its_row_of_fp8(gpu_backend: str, draw: torch.Generator, scaling: Scaling) -> None:
    packed = pack_fp8_weight(*fp8_weight(draw, 96, 192, scaling), torch.float32)
    x = torch.randn(40, 192, generator=draw)
    x[17, 150] = float("nan")
    is_nan = linear(x, packed).isnan()
    assert is_nan[17].all() and not is_nan[torch.arange(40) != 17].any()


@pytest.mark.parametrize("scaling", [Scaling.NONE, Scaling.BLOCKS, Scaling.CHANNELS])
@pytest.mark.parametrize(("num_rows", "num_out", "num_in"), [(2, 70, 1024), (31, 16, 2048), (64, 130, 1024)])
def test_parts_of_k_sum_to_the_whole(
    triton_backend: str, draw: torch.Generator, num_rows: int, num_out: int, num_in: int, scaling: Scaling
) -> None:
    x = torch.randn(num_rows, num_in, generator=draw)
    if scaling is Scaling.NONE:
        assert num_splits(num_rows, num_out, num_in, 2) == num_in // 512
        weight, x = torch.randn(num_out, num_in, generator=draw).bfloat16(), x.bfloat16()
        packed, exact = pack_weight(weight), x.double() @ weight.double().T
    else:
        assert num_splits(num_rows, num_out, num_in, 1) == num_in // 512
        values, scale = fp8_weight(draw, num_out, num_in, scaling)
        packed, exact = pack_fp8_weight(values, scale, torch.float32), exact_fp8(x, values, scale, scaling)
    out = linear_fp32_out(x, packed)
    assert error(out, exact) < 1e-5
    assert torch.equal(linear_fp32_out(x, packed), out) and not packed.arrivals.any()


@pytest.mark.parametrize("scaling", [Scaling.NONE, Scaling.BLOCKS, Scaling.CHANNELS])
@pytest.mark.parametrize(("num_out", "num_in"), [(150, 1024), (16, 5120), (33, 8192)])
def test_one_row_is_a_vector(
    triton_backend: str, draw: torch.Generator, num_out: int, num_in: int, scaling: Scaling
) -> None:
    assert takes_vector(1, num_out, num_in, 1)
    x = torch.randn(1, num_in, generator=draw)
    if scaling is Scaling.NONE:
        weight, x = torch.randn(num_out, num_in, generator=draw).bfloat16(), x.bfloat16()
        packed, exact = pack_weight(weight), x.double() @ weight.double().T
    else:
        values, scale = fp8_weight(draw, num_out, num_in, scaling)
        packed, exact = pack_fp8_weight(values, scale, torch.float32), exact_fp8(x, values, scale, scaling)
    assert error(linear_fp32_out(x, packed), exact) < 1e-5
    with_nan = x.clone()
    with_nan[0, num_in - 1] = float("nan")
    assert linear_fp32_out(with_nan, packed).isnan().all()


def test_scales_that_fit_no_format_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"scales \[3, 1\] of a weight \[200, 256\]"):
        pack_fp8_weight(torch.zeros(200, 256).to(torch.float8_e4m3fn), torch.ones(3, 1), torch.float32)


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
def test_rows_that_a_norm_quantised_are_those_that_the_product_would(
    gpu_backend: str, draw: torch.Generator, dtype: torch.dtype, scaling: Scaling
) -> None:
    packed = pack_fp8_weight(*fp8_weight(draw, 96, 192, scaling), dtype)
    gain, x, residual = (torch.randn(shape, generator=draw).to(dtype) for shape in ((192,), (5, 192), (5, 192)))
    summed = residual.clone()
    out = linear_of_fp8(Fp8Rows(*rms_norm_quantised(x, gain, 1e-6, scaling, summed)), packed)
    assert out.dtype == dtype
    assert torch.equal(out, linear(add_rms_norm(residual, x, gain, 1e-6), packed)) and torch.equal(summed, residual)
    out = linear_of_fp8(Fp8Rows(*rms_norm_quantised(x, gain, 1e-6, scaling)), packed)
    assert torch.equal(out, linear(rms_norm(x, gain, 1e-6), packed))
