"""FP8 checkpoints against the formulas over their dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.dequantise import dequantise
from tests.oracle.comparison import random_ids, relative_error
from tests.oracle.fp8_checkpoint import BLOCK, CHANNEL, by_block, by_channel, write_fp8
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
    for quantise in (by_block, by_channel):
        quantised, scales, meant = quantise(weight)
        assert torch.equal(dequantise(quantised, scales, torch.float32), meant)
        assert torch.equal(dequantise(quantised, scales, torch.bfloat16), meant.to(torch.bfloat16))
