"""RMSNorm against fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.permute import Answers, combine_rows
from kernels.quantise.formats import Scaling
from kernels.quantise.reference import quantise_blocks, quantise_tokens
from kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_both, rms_norm_quantised

EPS = 1e-6


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    u = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPS)
    return weight.double() * u


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (1, 64), (3, 100), (37, 17), (19, 512)])
def test_matches_fp64(backend: str, dtype: torch.dtype, draw: torch.Generator, shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape, generator=draw).to(dtype), torch.randn(shape[1], generator=draw).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1.2e-2
    torch.testing.assert_close(rms_norm(x, weight, EPS).double(), exact(x, weight), rtol=tolerance, atol=tolerance)


def test_the_weight_multiplies_after_the_cast(backend: str) -> None:
    # The last u is 1.0117: rounded to bf16 first it is 1.0078, and the product 1.7656 instead of 1.7734.
    x = torch.tensor([[1.0, 1.0, 1.0, 1.015625]], dtype=torch.bfloat16)
    weight = torch.full((4,), 1.75, dtype=torch.bfloat16)
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
    x, weight = torch.randn(50, 96, generator=draw).to(dtype), torch.ones(96, dtype=dtype)
    assert torch.equal(rms_norm(x[7:8].contiguous(), weight, EPS), rms_norm(x, weight, EPS)[7:8])
    x[11, 3] = float("nan")
    is_nan = rms_norm(x, weight, EPS).isnan()
    assert is_nan[11].all() and not is_nan[torch.arange(50) != 11].any()


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
@pytest.mark.parametrize("shape", [(0, 128), (1, 64), (3, 300), (13, 512)])
def test_fp8_is_the_norm_quantised(
    backend: str, dtype: torch.dtype, draw: torch.Generator, scaling: Scaling, shape: tuple[int, int]
) -> None:
    """To the last bit: what is quantised is the rounded norm, whoever rounds it."""
    x, residual, weight = (torch.randn(size, generator=draw).to(dtype) for size in (shape, shape, shape[1]))
    x[-1:, :130] = 0.0  # a block of zeros has the smallest scale
    quantise = quantise_blocks if scaling is Scaling.BLOCKS else quantise_tokens
    for is_summed in (False, True):
        stream = residual.clone() if is_summed else None
        normed = add_rms_norm(residual.clone(), x, weight, EPS) if is_summed else rms_norm(x, weight, EPS)
        values, scales = rms_norm_quantised(x, weight, EPS, scaling, stream)
        true_values, true_scales = quantise(normed)
        if backend == "triton" or dtype == torch.bfloat16:  # the reference's own fp32 norm is not the native one's
            assert torch.equal(scales, true_scales) and torch.equal(values.float(), true_values.float())
        assert values.dtype == torch.float8_e4m3fn and scales.shape == true_scales.shape
        truth = normed.double()
        step = scales.double().repeat_interleave(128, 1)[:, : shape[1]] if scaling is Scaling.BLOCKS else scales
        assert ((values.double() * step - truth).abs() <= truth.abs() / 16 + 1.01 * step * 2.0**-10).all()
        if stream is not None:
            assert torch.equal(stream, residual + x)


def test_nan_spoils_its_rows_scales_alone(backend: str, draw: torch.Generator) -> None:
    x = torch.randn(9, 256, generator=draw)
    x[4, 7] = float("nan")
    for scaling in (Scaling.BLOCKS, Scaling.CHANNELS):
        values, scales = rms_norm_quantised(x, torch.ones(256), EPS, scaling)
        is_nan = scales.isnan()
        assert is_nan[4].all() and values[4].float().isnan().all() and not is_nan[torch.arange(9) != 4].any()


def test_wrong_shapes_are_named(backend: str) -> None:
    with pytest.raises(AssertionError, match=r"x is \[2, 8\], weight \[7\]"):
        rms_norm(torch.ones(2, 8), torch.ones(7), EPS)


@pytest.mark.parametrize("scaling", [Scaling.BLOCKS, Scaling.CHANNELS])
@pytest.mark.parametrize("shape", [(0, 128), (3, 300), (13, 512)])
def test_both_at_once_are_both(
    backend: str, dtype: torch.dtype, draw: torch.Generator, scaling: Scaling, shape: tuple[int, int]
) -> None:
    x, residual, weight = (torch.randn(size, generator=draw).to(dtype) for size in (shape, shape, shape[1]))
    streams = [residual.clone() for _ in range(3)]
    normed, values, scales = rms_norm_both(streams[0], x, weight, EPS, scaling)
    alone = rms_norm_quantised(x, weight, EPS, scaling, streams[1])
    if backend != "native" or dtype == torch.bfloat16:  # the reference's own fp32 norm is not the native one's
        assert torch.equal(normed, add_rms_norm(streams[2], x, weight, EPS))
    assert torch.equal(values.float(), alone[0].float()) and torch.equal(scales, alone[1])
    assert torch.equal(streams[0], residual + x)


@pytest.mark.parametrize("has_plus", [True, False], ids=["plus", "alone"])
@pytest.mark.parametrize("scaling", list(Scaling))
@pytest.mark.parametrize("shape", [(0, 128), (1, 64), (3, 300), (13, 512)])
def test_answers_are_summed_on_the_way(
    backend: str,
    dtype: torch.dtype,
    draw: torch.Generator,
    shape: tuple[int, int],
    scaling: Scaling,
    has_plus: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last bit what two kernels make of them, whether one does it or two; a place of -1 is not read."""
    num_rows, width = shape
    rows = torch.randn(3 * num_rows + 1, width, generator=draw).to(dtype)
    places = torch.randperm(3 * num_rows, generator=draw).int().view(num_rows, 3)
    places[1:2] = -1
    rows[-1] = float("nan")  # what -1 would read
    answers = Answers(rows, places, torch.rand(num_rows, 3, generator=draw))
    residual, weight = torch.randn(shape, generator=draw).to(dtype), torch.randn(width, generator=draw).to(dtype)
    if has_plus:
        answers = replace(answers, plus=torch.randn(shape, generator=draw).to(dtype))
    summed = combine_rows(answers.rows, places, answers.weights, answers.plus)
    assert answers.shape == summed.shape and torch.equal(answers.combined(), summed)

    def norm(x: torch.Tensor | Answers) -> tuple[torch.Tensor, ...]:
        stream = residual.clone()
        if scaling is Scaling.NONE:
            return add_rms_norm(stream, x, weight, EPS), stream
        return *rms_norm_quantised(x, weight, EPS, scaling, stream), stream

    expected = norm(summed)
    found = [norm(answers)]
    if backend == "triton":
        monkeypatch.setattr("kernels.rms_norm.triton_kernel.MAX_ANSWERED_ROWS", 0)
        found.append(norm(answers))
        monkeypatch.undo()
        monkeypatch.delattr("kernels.permute.triton_kernel.combine_kernel")
        found.append(norm(answers))
    for results in found:
        for ours, theirs in zip(results, expected, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours.float(), theirs.float())


def test_answers_are_added_to_something(backend: str) -> None:
    answers = Answers(torch.ones(2, 8), torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1))
    with pytest.raises(AssertionError, match="answers are added to a residual stream"):
        rms_norm_quantised(answers, torch.ones(8), EPS, Scaling.BLOCKS)
    with pytest.raises(AssertionError, match=r"residual is \[3, 8\], x \[2, 8\]"):
        add_rms_norm(torch.ones(3, 8), answers, torch.ones(8), EPS)
