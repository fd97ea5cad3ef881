"""FP8 checkpoints against the formulas over their dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fp8_checkpoint import BLOCK, CHANNEL, by_block, by_channel
from model.dequantise import dequantise
from tests.oracle.comparison import random_ids, relative_error
from tests.oracle.fp8_checkpoint import write_fp8
from tests.oracle.reference import ReferenceModel
from tests.oracle.tiny_models import TinyModel, run_prompt


@pytest.mark.parametrize("quantization", [BLOCK, CHANNEL], ids=["block", "channel"])
def test_logits_are_those_of_the_dequantised_weights(
    tiny: Callable[[str], TinyModel], tmp_path: Path, quantization: dict[str, Any]
) -> None:
    source = tiny("F")
    model, stored = write_fp8(source, tmp_path, quantization)
    assert sum(tensor.dtype is torch.float8_e4m3fn for tensor in stored.values()) > 150
    ids = random_ids(24, model.config.vocab_size)
    ours = run_prompt(model.load(), ids).logits
    assert relative_error(ours, ReferenceModel(model.config, model.tensors).forward(ids).logits) < 1e-5
    unquantised = ReferenceModel(source.config, source.tensors).forward(ids).logits
    assert relative_error(ours, unquantised) > 1e-3, "quantisation left no trace: were the FP8 weights read at all?"


@pytest.mark.parametrize("shape", [(128, 128), (384, 256), (130, 200), (5, 300)])
def test_dequantise_is_exact_in_fp32_on_ragged_shapes(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for quantise in (by_block, partial(by_block, powers_of_two=True), by_channel):
        quantised, scales, meant = quantise(weight)
        assert torch.equal(dequantise(quantised, scales, torch.float32), meant)
        assert torch.equal(dequantise(quantised, scales, torch.bfloat16), meant.to(torch.bfloat16))


def test_round_scales_are_the_next_powers_of_two(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """As the published quantiser makes those of the attention's output and of the routed experts' gate and up."""
    _, stored = write_fp8(tiny("F"), tmp_path, BLOCK)
    scales = {name: scale for name, scale in stored.items() if name.endswith("_scale_inv")}
    is_round = {name: bool((scale.log2() == scale.log2().round()).all()) for name, scale in scales.items()}
    assert is_round == {
        name: "attention.dense" in name or (".experts." in name and "down" not in name) for name in scales
    }
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    exact, rounded = by_block(weight)[1], by_block(weight, powers_of_two=True)[1]
    assert ((exact <= rounded) & (rounded < 2 * exact)).all()
