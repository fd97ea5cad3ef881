from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.shapes import SHAPES, shape_dict
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.rope import cos_sin_table
from model.tensors import TensorKind, expected_tensors


def config_with(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(shape_dict("B") | changes)


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in shape_dict("B").items() if name not in names}


def test_flash_shape_counts_exactly_the_published_parameters() -> None:
    specs = list(expected_tensors(ModelConfig.from_dict(SHAPES["flash"])))
    assert sum(math.prod(spec.shape) for spec in specs) == 102_889_705_216  # model-spec §1
    assert len(specs) == 24_161
    assert sum(math.prod(spec.shape) for spec in specs if spec.kind is TensorKind.BIAS) == 31 * 256


def test_flash_with_mtp_layer_adds_the_published_parameters() -> None:
    specs = list(expected_tensors(ModelConfig.from_dict(SHAPES["flash"] | {"num_nextn_predict_layers": 1})))
    assert sum(math.prod(spec.shape) for spec in specs) == 102_889_705_216 + 3_306_181_120
    assert len(specs) == 24_161 + 783


def test_both_spellings_of_rope_mean_the_same() -> None:
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 600000.0,
        "partial_rotary_factor": 0.5,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    new = without("rope_theta", "rope_scaling", "partial_rotary_factor")
    new |= {"rope_parameters": parameters, "max_position_embeddings": 128}
    assert ModelConfig.from_dict(new).rope == ModelConfig.from_dict(shape_dict("D")).rope


def test_rotary_dim_stands_in_for_the_factor() -> None:
    assert ModelConfig.from_dict(without("partial_rotary_factor") | {"rotary_dim": 16}).rope == config_with().rope


def test_yarn_stretches_the_context_even_where_the_limit_was_left_alone() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert config_with(rope_scaling=yarn).max_context == 8192
    assert config_with(rope_scaling=yarn, max_position_embeddings=8192).max_context == 8192
    assert config_with().max_context == 2048


@pytest.mark.parametrize("model_type", ["bailing_moe", "bailing_moe_v2"])
def test_both_model_types_are_read(model_type: str) -> None:
    assert config_with(model_type=model_type).num_experts == 16


def test_absent_head_dim_and_shared_width_are_derived() -> None:
    config = ModelConfig.from_dict(without("head_dim", "moe_shared_expert_intermediate_size"))
    assert (config.head_dim, config.shared_expert_size) == (32, 64)


@pytest.mark.parametrize(
    "name",
    [
        "partial_rotary_factor",
        "rope_theta",
        "routed_scaling_factor",
        "n_group",
        "topk_group",
        "first_k_dense_replace",
        "num_shared_experts",
        "rms_norm_eps",
        "num_key_value_heads",
        "max_position_embeddings",
        "hidden_size",
    ],
)
def test_field_without_a_safe_default_is_required(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: missing"):
        ModelConfig.from_dict(without(name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score_function", "softmax"),
        ("norm_topk_prob", False),
        ("use_qk_norm", False),
        ("use_rmsnorm", False),
        ("use_bias", True),
        ("hidden_act", "gelu"),
        ("router_dtype", "bf16"),
        ("model_type", "llama"),
        ("architectures", ["BailingMoeForCausalLM"]),
        ("num_experts", "16"),
        ("num_experts_per_tok", 1),
        ("num_experts_per_tok", 9),
        ("n_group", 5),
        ("topk_group", 5),
        ("num_key_value_heads", 3),
        ("first_k_dense_replace", 5),
        ("num_nextn_predict_layers", 2),
        ("rms_norm_eps", float("nan")),
        ("partial_rotary_factor", 1.5),
        ("partial_rotary_factor", "half"),
        ("rotary_dim", 8),
        ("hidden_size", 0),
        ("eos_token_id", "2"),
        ("eos_token_id", 512),
    ],
)
def test_unsupported_value_is_refused_by_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(**{field: value})
    assert caught.value.field == field
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 5e-324}}, "rope_scaling.beta_fast"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale_all_dim": -1.0}}, "rope_scaling.mscale_all_dim"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "long_factor": [1]}}, "rope_scaling.long_factor"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            "quantization_config.weight_block_size.0",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
            "quantization_config.format",
        ),
    ],
)
def test_unsupported_nested_value_is_refused_by_its_path(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(**changes)
    assert caught.value.field == field


def test_end_of_text_ids_are_the_union_of_the_files_beside(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape_dict("B") | {"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    added = {"9": {"content": "<|role_end|>"}, "4": {"content": "<|startoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert ModelConfig.from_dir(tmp_path).eos_token_ids == (2, 5, 9)


@pytest.mark.parametrize(("text", "message"), [("{", "JSON"), ("[]", "not an object"), ('{"a":1,"a":2}', "twice")])
def test_broken_config_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        ModelConfig.from_dir(tmp_path)
    assert "config.json" in str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.config\.json"):
        ModelConfig.from_dir(tmp_path / "nowhere")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [*SHAPES["D"], "rotary_dim", "rope_parameters", "quantization_config", "num_nextn_predict_layers", "dtype"]


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(FIELDS), value=JSON_VALUES)
def test_any_json_value_is_read_or_refused_never_a_traceback(field: str, value: Any) -> None:
    try:
        config = ModelConfig.from_dict(shape_dict("D") | {field: value})
    except ConfigError:
        return
    assert 2 <= config.rope.rotary_dim <= config.head_dim


ROPE_FIELDS = ["type", "rope_type", "factor", "rope_theta", "truncate"]
ROPE_FIELDS += ["beta_fast", "beta_slow", "original_max_position_embeddings", "attention_factor", "mscale_all_dim"]


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(ROPE_FIELDS), value=JSON_VALUES)
def test_any_rope_scaling_is_read_or_refused(name: str, value: Any) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0} | {name: value}
    with contextlib.suppress(ConfigError):
        rope = config_with(rope_scaling=scaling).rope
        assert cos_sin_table(rope, 3).shape == (3, rope.rotary_dim)
