"""The distance of FP8 from bf16 on the shipped model, over a few answers: small, and large where scales are wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.fp8_numerics import FORMATS, ROOT, Distance, Variant, answer, logits, write_fp8
from training.draft.answers import Talk

MODEL = ROOT / "models" / "sigmoe-demo"


@pytest.fixture(scope="module")
def talks() -> list[Talk]:
    return answer(MODEL, "medical", num_questions=8, max_tokens=24)


@pytest.fixture(scope="module")
def bf16(talks: list[Talk]) -> Tensor:
    return logits(Variant(name="bf16", folder=MODEL), talks)


def shift_scales(folder: Path) -> None:
    """Each weight's scales by one place: the next block's, or the next channel's."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "_scale" in name:
            tensors[name] = tensor.flatten().roll(1).view_as(tensor).contiguous()
    save_file(tensors, file)


@pytest.mark.parametrize("name", FORMATS)
def test_fp8_is_near_bf16_and_shifted_scales_are_far(
    name: str, talks: list[Talk], bf16: Tensor, tmp_path: Path
) -> None:
    write_fp8(MODEL, tmp_path, name)
    kept = Variant(name="activations too", folder=tmp_path, keeps_fp8=True)
    ours = logits(kept, talks)
    served = logits(Variant(name="weights only", folder=tmp_path), talks)
    shift_scales(tmp_path)
    shifted = logits(kept, talks)
    for near in (Distance.between(bf16, found) for found in (ours, served)):
        assert near.top1_agreement > 0.95
        assert near.mean_kl < 0.02
        assert Distance.between(bf16, shifted).mean_kl > 5 * near.mean_kl


@pytest.mark.parametrize("name", FORMATS)
def test_activations_are_quantised(name: str, talks: list[Talk], tmp_path: Path) -> None:
    """In fp32 nothing else tells FP8 weights from dequantised ones."""
    write_fp8(MODEL, tmp_path, name)
    kept, dequantised = (
        Variant(name="fp32", folder=tmp_path, dtype=torch.float32, keeps_fp8=keeps_fp8) for keeps_fp8 in (True, False)
    )
    assert Distance.between(logits(dequantised, talks[:2]), logits(kept, talks[:2])).mean_kl > 1e-4


def test_the_divergence_is_from_bf16_to_the_variant() -> None:
    ours, theirs = torch.tensor([[0.5, 0.5], [0.8, 0.2]]).log(), torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()
    found = Distance.between(ours + 3, theirs)  # logits are right up to a constant
    assert found.max_kl == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6)
    assert found.mean_kl == pytest.approx(found.max_kl / 2, rel=1e-6)


def test_positions_are_those_that_predict_the_answers(talks: list[Talk], bf16: Tensor) -> None:
    """The engine chose each token of its answer from the row before it."""
    # In the order of `batches`, which puts short talks first.
    said = [token for talk in sorted(talks, key=lambda t: len(t.tokens)) for token in talk.tokens[talk.answer_start :]]
    assert (bf16.argmax(1) == torch.tensor(said)).double().mean() > 0.95
