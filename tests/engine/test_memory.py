"""KV cache sizing and its complaints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.fp8_checkpoint import BLOCK
from benchmarks.shapes import shape_dict
from engine.config import EngineConfig
from engine.memory import OutOfMemory, available_bytes, demand_room_for_weights, kv_blocks, weight_bytes
from model.config import ModelConfig
from model.kv_cache import kv_bytes_per_block

MODEL = ModelConfig.from_dict(shape_dict("B"))
CONFIG = EngineConfig(model_dir="unused", block_size=16, max_sequences=3, max_context=100)
PER_BLOCK = kv_bytes_per_block(MODEL, 16, torch.float32)


def _blocks(free_bytes: int, **changes: object) -> int:
    return kv_blocks(dataclasses.replace(CONFIG, **changes), MODEL, torch.float32, free_bytes)  # type: ignore[arg-type]


def test_without_a_size_it_is_what_the_sequences_can_use() -> None:
    assert _blocks(10**12) == 3 * 7


def test_without_a_size_it_is_at_most_a_share_of_what_is_free() -> None:
    assert _blocks(20 * PER_BLOCK) == 10
    assert _blocks(20 * PER_BLOCK, group_size=2) == 5
    assert _blocks(20 * PER_BLOCK, kv_fraction=0.25) == 5


def test_a_given_size_is_taken() -> None:
    assert _blocks(10**12, num_blocks=5) == 5
    assert _blocks(10**12, kv_bytes=3 * PER_BLOCK + 1) == 3


@pytest.mark.parametrize("size", [{"num_blocks": 11}, {"kv_bytes": 11 * PER_BLOCK}])
def test_what_does_not_fit_is_refused_with_both_numbers(size: dict[str, int]) -> None:
    with pytest.raises(OutOfMemory, match=r"needs .* MiB for 11 blocks .* are free"):
        _blocks(10 * PER_BLOCK, **size)


@pytest.mark.parametrize("size", [{"kv_bytes": PER_BLOCK - 1}, {}])
def test_less_than_one_block_is_refused(size: dict[str, int]) -> None:
    with pytest.raises(OutOfMemory, match="for 1 blocks"):
        _blocks(PER_BLOCK, **size)


def test_weights_are_counted_for_the_experts_held() -> None:
    whole = weight_bytes(MODEL, torch.bfloat16, range(MODEL.num_experts))
    half = weight_bytes(MODEL, torch.bfloat16, range(MODEL.num_experts // 2))
    num_moe_layers = MODEL.num_hidden_layers - MODEL.first_k_dense_replace
    one_expert = 3 * MODEL.hidden_size * MODEL.moe_intermediate_size * 2
    assert whole - half == num_moe_layers * (MODEL.num_experts // 2) * one_expert


def test_fp8_weights_count_as_they_lie() -> None:
    """Weights of one byte and fp32 scales where they stay FP8; where they do not, what the dtype takes."""
    fields = shape_dict("F") | {"quantization_config": BLOCK}
    model = ModelConfig.from_dict(fields)
    experts = range(model.num_experts)
    plain, kept = (weight_bytes(model, torch.bfloat16, experts, keeps_fp8=keeps) for keeps in (False, True))
    one_expert = 3 * model.hidden_size * model.moe_intermediate_size
    num_scales = one_expert // 128**2
    one_less = weight_bytes(model, torch.bfloat16, experts[1:], keeps_fp8=True)
    num_moe_layers = model.num_hidden_layers - model.first_k_dense_replace
    assert kept - one_less == num_moe_layers * (one_expert + 4 * num_scales)
    assert plain / 2 < kept < plain


def test_weights_that_do_not_fit_are_refused() -> None:
    demand_room_for_weights(10, 10)
    with pytest.raises(OutOfMemory, match="weights need"):
        demand_room_for_weights(2**40, 2**30)


def test_the_containers_limit_counts(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    machine = available_bytes(cpu, tmp_path)
    assert machine > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert available_bytes(cpu, tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(cpu, tmp_path) > 600
