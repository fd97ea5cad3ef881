"""Whole models through the Triton kernels: in fp32 equal to the formulas, in FP8 close to the dequantised weights.

Without a GPU they run in Triton's interpreter, one step of a tiny model taking seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fp8_checkpoint import BLOCK, CHANNEL
from benchmarks.shapes import shape_dict
from kernels import native
from kernels.linear import Layout
from scheduler.request import Request, SamplingParams
from tests.engine.mixed_requests import ROOMY, make_engine, run_all, tiny
from tests.kernels.interpreter import repair
from tests.oracle.comparison import random_ids, relative_error
from tests.oracle.fp8_checkpoint import write_fp8
from tests.oracle.reference import ReferenceModel
from tests.oracle.tiny_models import TinyModel, run_prompt, tiny_model

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tiny models are loaded onto the CPU")

# Every expert is chosen, since one expert more or less would hide how close the products are.
_ALL_EXPERTS = {"num_hidden_layers": 2, "num_experts": 4, "n_group": 2, "topk_group": 2, "num_experts_per_tok": 4}


@pytest.fixture(autouse=True)
def triton() -> Iterator[None]:
    repair()
    native.use("triton")
    yield
    native.use("auto")


def test_logits_match_the_formulas(tiny: Callable[[str], TinyModel]) -> None:
    model = tiny("B")
    ids = random_ids(11, model.config.vocab_size)
    ours = run_prompt(model.load(), ids).logits
    assert relative_error(ours, ReferenceModel(model.config, model.tensors).forward(ids).logits) < 1e-5


def test_an_engine_says_the_same_as_on_the_cpu() -> None:
    """Greedy tokens in fp32, of a chunk and of decodes."""
    sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    prompts = {"long": tuple(range(40, 50)), "short": (5, 6)}
    requests = [Request(request_id=name, prompt=prompt, sampling=sampling) for name, prompt in prompts.items()]
    said = []
    for kernels in ("triton", "auto"):
        tiny.cache_clear()  # weights lie as the kernels chosen at loading read them
        native.use(kernels)
        outcomes = run_all(make_engine(ROOMY, "A"), requests)
        said.append({key: tokens for key, (tokens, _) in outcomes.items()})
    tiny.cache_clear()
    assert said[0] == said[1] and all(len(tokens) == 2 for tokens in said[0].values())


@pytest.mark.parametrize("quantization", [BLOCK, CHANNEL], ids=["block", "channel"])
def test_fp8_weights_stay_fp8(tmp_path: Path, quantization: dict[str, Any]) -> None:
    source = tiny_model(shape_dict("F") | _ALL_EXPERTS, tmp_path / "plain")
    stored, _ = write_fp8(source, tmp_path / "fp8", quantization)
    ids = random_ids(9, stored.config.vocab_size)
    model = stored.load()
    assert all(layer.attention.dense.weight.layout is Layout.FP8 for layer in model.layers)
    ours = run_prompt(model, ids).logits
    native.use("torch")  # the same model, whose weights stay as they are
    difference = (ours - run_prompt(model, ids).logits).abs().amax(1) / ours.abs().max()
    # A value at the edge between two e4m3 numbers may fall to either side; from there on its sequence differs a little.
    assert difference.median() < 1e-5 and difference.max() < 0.1
    native.use("auto")
    dequantised = run_prompt(stored.load(), ids).logits
    # Activations of 3 bits of mantissa leave a trace, of a few hundredths.
    assert 1e-3 < relative_error(ours, dequantised) < 0.15
