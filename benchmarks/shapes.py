"""The shapes that tests and benchmarks run: config.json contents by name.

A to H are the tiny ones of model-spec §10; `reference` is the one that speed is measured on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_COMMON: dict[str, Any] = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "model_type": "bailing_moe",
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "norm_topk_prob": True,
    "router_dtype": "fp32",
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "num_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "rope_theta": 600000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
_ATTENTION = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
_FFN = ("intermediate_size", "moe_intermediate_size")
_ROUTING = ("num_experts", "n_group", "topk_group", "num_experts_per_tok")


def _shape(attention: str, ffn: str, routing: str, **extra: Any) -> dict[str, Any]:
    fields = dict(_COMMON)
    for names, values in ((_ATTENTION, attention), (_FFN, ffn), (_ROUTING, routing)):
        fields.update(zip(names, map(int, values.split()), strict=True))
    fields["moe_shared_expert_intermediate_size"] = fields["moe_intermediate_size"]
    return fields | extra


_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "A": _shape("64 4 4 2 16", "128 32", "8 2 1 2"),
    "B": _shape("128 4 4 2 32", "256 64", "16 4 2 4"),
    "C": _shape("128 4 4 2 32", "256 64", "16 4 2 4", num_nextn_predict_layers=1),
    "D": _shape("128 4 4 2 32", "256 64", "16 4 2 4", rope_scaling=_YARN, max_position_embeddings=128),
    "E": _shape("128 8 4 2 32", "256 64", "16 4 2 4"),
    "F": _shape("256 4 4 2 64", "512 128", "16 4 2 4"),
    "G": _shape("256 3 4 4 64", "512 128", "64 8 4 8"),
    "H": _shape("256 2 2 1 128", "384 128", "256 8 4 8"),
    "reference": _shape("512 8 8 2 64", "1536 256", "64 8 4 8", vocab_size=16384, max_position_embeddings=32768),
    "flash": _shape("4096 32 32 4 128", "9216 1024", "256 8 4 8", vocab_size=157184, max_position_embeddings=32768),
}


def shape_dict(name_or_file: str) -> dict[str, Any]:
    """The config.json contents of a named shape, or of a file. Raises KeyError with the names known."""
    if name_or_file in SHAPES:
        return dict(SHAPES[name_or_file])
    if not Path(name_or_file).is_file():
        raise KeyError(f"{name_or_file}: neither a file nor one of {', '.join(SHAPES)}")
    fields: dict[str, Any] = json.loads(Path(name_or_file).read_text(encoding="utf-8"))
    return fields
