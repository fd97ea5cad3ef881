"""Activations to FP8 against the formulas of model-spec §4."""

from __future__ import annotations

import pytest
import torch

from kernels.quantise import quantise_blocks, quantise_tokens
from kernels.quantise.formats import Scaling

WIDTHS = [1, 64, 128, 130, 300]


def spread(draw: torch.Generator, num_rows: int, width: int) -> torch.Tensor:
    """Values over many powers of two, some so small that e4m3 has them as subnormals or not at all."""
    return torch.randn(num_rows, width, generator=draw) * torch.exp2(-12 * torch.rand(width, generator=draw))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_blocks_match_the_formula(gpu_backend: str, draw: torch.Generator, num_rows: int, width: int) -> None:
    x = spread(draw, num_rows, width)
    values, scales = quantise_blocks(x)
    assert values.shape == x.shape and scales.shape == (num_rows, -(-width // 128))
    for start in range(0, width, 128):
        part = x[:, start : start + 128]
        scale = part.abs().amax(1).clamp_min(1e-10) / 448 if num_rows else torch.zeros(0)
        assert torch.equal(scales[:, start // 128], scale)
        exact = (part / scale[:, None]).to(torch.float8_e4m3fn)
        assert torch.equal(values[:, start : start + 128].float(), exact.float())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_tokens_match_the_formula(gpu_backend: str, draw: torch.Generator, num_rows: int, width: int) -> None:
    x = spread(draw, num_rows, width)
    values, scales = quantise_tokens(x)
    scale = (x.abs().amax(1, keepdim=True) / 448).clamp_min(1 / (448 * 512)) if num_rows else torch.zeros(0, 1)
    assert torch.equal(scales, scale)
    assert torch.equal(values.float(), (x / scale).to(torch.float8_e4m3fn).float())


def test_a_row_of_zeros_stays_zero(gpu_backend: str) -> None:
    for quantise in (quantise_blocks, quantise_tokens):
        values, scales = quantise(torch.zeros(2, 200))
        assert not values.float().any() and scales.isfinite().all() and (scales > 0).all()


def test_every_e4m3_comes_back(gpu_backend: str) -> None:
    """Values that e4m3 has exactly are kept, and what lies between two of them goes to the nearer, ties to even."""
    grid = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x = torch.cat([grid, (grid[1:] + grid[:-1]) / 2, -grid])[None]
    values, scales = quantise_tokens(x)
    assert scales.item() == 1.0
    assert torch.equal(values.float(), x.to(torch.float8_e4m3fn).float())


def test_nan_stays_in_its_row(gpu_backend: str, draw: torch.Generator) -> None:
    x = torch.randn(3, 200, generator=draw)
    x[1, 150] = float("nan")
    for quantise in (quantise_blocks, quantise_tokens):
        values, scales = quantise(x)
        restored = values.float() * scales[:, -1:]
        assert restored[1, 128:].isnan().all() and not restored[::2].isnan().any()


def test_a_scale_tells_its_format() -> None:
    weight = torch.zeros(256, 384)
    assert Scaling.of(weight, torch.zeros(2, 3)) is Scaling.BLOCKS
    assert Scaling.of(weight, torch.zeros(256, 1)) is Scaling.CHANNELS
    assert Scaling.of(torch.zeros(1, 100), torch.zeros(1, 1)) is Scaling.CHANNELS  # both formats agree on it
