"""What an EAGLE3 head's config.json says, in both layouts, and what of it must be refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.shapes import SHAPES
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from model.eagle3_shapes import num_parameters
from model.errors import CheckpointError
from tests.oracle.eagle3_heads import flat_config, nested_config

TARGET = ModelConfig.from_dict(SHAPES["E"])  # 8 layers
FLASH = ModelConfig.from_dict(SHAPES["flash"])
IDS = "eagle_aux_hidden_state_layer_ids"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


def read(raw: dict[str, Any], target: ModelConfig = TARGET) -> Eagle3Config:
    return Eagle3Config.from_dict(raw, target)


def without(*names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in flat_config(TARGET, **changes).items() if name not in names}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_before_fc": True, "norm_output": True, "norm_before_residual": True},
        {"fc_norm": True, "num_aux_hidden_states": 3, "target_hidden_size": TARGET.hidden_size},
        {"sliding_window": 2048, "layer_types": ["sliding_attention"]},
        {"rope_theta": 1000000, "rope_scaling": YARN, "attention_bias": True},
    ],
)
def test_both_layouts_say_the_same(changes: dict[str, Any]) -> None:
    flat = flat_config(TARGET, **changes)
    assert read(nested_config(flat)) == read(flat)
    assert read(flat).capture_layers == (1, 2, TARGET.num_hidden_layers - 1)


def test_the_recipe_for_the_real_model_is_read() -> None:
    config = read(
        {
            "architectures": ["LlamaForCausalLMEagle3"],
            **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "num_hidden_layers": 1, "vocab_size": 157184, "draft_vocab_size": 32000},
            **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "hidden_act": "silu", "pad_token_id": 0},
            **{"bos_token_id": 163584, "eos_token_id": 163585, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
        },
        FLASH,
    )
    assert config.capture_layers == (2, 16, 29)
    assert config.head_dim == config.rope.rotary_dim == 128
    assert config.rope.rope_theta == 10000 and config.rope.rope_type == "default"
    # qkv 50.3 M, o 16.8 M, FFN 176.2 M, head 131.1 M and fc 50.3 M (speculative-decoding notes §1), the norms, no d2t.
    assert num_parameters(config, FLASH) == 50331648 + 16777216 + 176160768 + 131072000 + 50331648 + 4 * 4096


def test_what_a_head_holds_in_memory_counts_an_embedding_of_its_own() -> None:
    plain = num_parameters(read(flat_config(TARGET)), TARGET)
    vocab, hidden = TARGET.vocab_size, TARGET.hidden_size
    assert plain > num_parameters(read(flat_config(TARGET, draft_vocab_size=59)), TARGET) == plain - hidden
    tied = read(flat_config(TARGET, draft_vocab_size=None, tie_word_embeddings=True))
    assert num_parameters(tied, TARGET) == plain + (vocab - 60) * hidden
    half = read(flat_config(TARGET, hidden_size=hidden // 2))
    layer = (plain - 4 * hidden - 60 * hidden - 3 * hidden * hidden) // 2 + 4 * (hidden // 2)
    assert num_parameters(half, TARGET) == layer + (60 + vocab + 3 * hidden) * (hidden // 2)


@pytest.mark.parametrize(
    "raw",
    [
        without("eagle_config"),
        without("eagle_config", eagle_aux_hidden_state_layer_ids=[]),
        without(eagle_config={"use_aux_hidden_state": True, IDS: []}),
        without(eagle_config=None),
        without("eagle_config", eagle_aux_hidden_state_layer_ids=[2, 4, 5]),
        without(eagle_config={IDS: [1, 3, 4]}, eagle_aux_hidden_state_layer_ids=[2, 4, 5]),
    ],
)
def test_layers_already_run_are_one_more_than_layers_whose_output_is_wanted(raw: dict[str, Any]) -> None:
    assert read(raw).capture_layers == (2, 4, 5)


def test_five_states_may_be_captured() -> None:
    raw = flat_config(TARGET, eagle_config={IDS: [-1, 0, 2, 4, 6]}, num_aux_hidden_states=5)
    assert read(raw).capture_layers == (0, 1, 3, 5, 7)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": None}, None),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "layer_types": ["sliding_attention"]}, 64),
        ({"sliding_window": 64, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 64, "use_sliding_window": False}, None),
        ({"sliding_window": 64, "use_sliding_window": True}, 64),
    ],
)
def test_a_window_holds_unless_it_is_switched_off(changes: dict[str, Any], window: int | None) -> None:
    assert read(flat_config(TARGET, **changes)).sliding_window == window


def test_the_rotary_embedding_is_the_heads_own() -> None:
    assert read(flat_config(TARGET)).rope.rope_theta == 10000 != TARGET.rope.rope_theta
    old = read(flat_config(TARGET, rope_theta=50000, rope_scaling={"type": "yarn", **{**YARN, "rope_type": "yarn"}}))
    new = read(flat_config(TARGET, rope_parameters={**YARN, "rope_theta": 50000.0}))
    assert old.rope == new.rope and old.rope.factor == 4.0
    assert read(flat_config(TARGET, partial_rotary_factor=0.5)).rope.rotary_dim == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"is_causal": False}, "is_causal"),
        ({"rope_interleave": True}, "rope_interleave"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state"),
        ({"norm_before_fc": True, "fc_norm": True}, "fc_norm: goes not together"),
        ({"norm_output": "yes"}, "norm_output"),
        ({"draft_vocab_size": 10**6}, "draft_vocab_size: 1000000 is more"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: a head over a part"),
        ({"vocab_size": 32000}, "vocab_size: 32000, the model has 512"),
        ({"target_hidden_size": 3}, "target_hidden_size: 3"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"speculators_model_type": "dflash"}, "speculators_model_type: 'dflash'"),
        ({"eagle_config": []}, r"eagle_config: \[\] is not allowed: an object"),
        ({"eagle_config": {IDS: [0, 99]}}, f"{IDS}: captures.*100"),
        ({"eagle_config": {IDS: [3, 1]}}, f"{IDS}: captures"),
        ({"eagle_config": {IDS: [1, 1]}}, f"{IDS}: captures"),
        ({"eagle_config": {IDS: [1, 2.0]}}, f"{IDS}: .* is not allowed: a list"),
        ({IDS: [1, 2, 3]}, f"{IDS}: .* contradicts"),
        ({"num_aux_hidden_states": 5}, "num_aux_hidden_states: 5, but 3"),
        ({"sliding_window": 0}, "sliding_window: 0 is not allowed"),
        ({"layer_types": ["sliding_attention"]}, "sliding_window: missing"),
        ({"layer_types": ["chunked_attention"]}, "layer_types: .* is not allowed"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.rope_type: 'llama3'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor: missing"),
        ({"rope_scaling": {"mrope_section": [16, 24, 24]}}, "rope_scaling.mrope_section"),
        ({"rope_scaling": 4}, "rope_scaling: 4 is not allowed: an object"),
        ({"rope_theta": 0}, "rope_theta: 0.0 is not allowed"),
        ({"rope_theta": 1, "rope_scaling": YARN}, "rope_theta: 1.0 is not allowed: more than 1 is"),
        (
            # 0.1 x mscale_all_dim x ln(factor) + 1 is what YaRN divides by
            {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": -10 / math.log(4)}},
            "rope_scaling.mscale_all_dim: .* is not allowed: .* greater than or equal to 0",
        ),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: 1.5 is not allowed"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 is no divisor"),
        ({"head_dim": 15}, "head_dim: 15 is not allowed"),
        ({"head_dim": 1024}, "head_dim: 1024 is not allowed"),
        ({"hidden_size": None, "head_dim": None}, "hidden_size: missing"),
        ({"intermediate_size": None}, "intermediate_size: missing"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
    ],
)
def test_what_a_head_cannot_mean_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(flat_config(TARGET, **change))


def test_a_model_too_shallow_for_the_default_is_told_so() -> None:
    with pytest.raises(CheckpointError, match=rf"{IDS}: missing.*7 layers; the model has 4"):
        read(without("eagle_config"), ModelConfig.from_dict(SHAPES["B"]))


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": YARN}, 8192),
        ({"max_position_embeddings": 4096, "sliding_window": 2048}, None),
        ({"max_position_embeddings": 4096, "sliding_window": 8192}, 4096),
    ],
)
def test_the_positions_a_head_is_meant_for(changes: dict[str, Any], positions: int | None) -> None:
    assert read(without(**changes)).max_context == positions
    assert read(nested_config(without(**changes))).max_context == positions


def test_a_head_that_says_nothing_of_its_length_is_a_short_one() -> None:
    assert read(without("max_position_embeddings")).max_context == 2048
