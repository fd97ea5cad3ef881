"""Every tensor of a checkpoint by its published name (model-spec §3): shape, kind, owner."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelConfig


class TensorKind(enum.Enum):
    """How a tensor is used, and so how it may be stored."""

    LINEAR = "linear"  # the one kind that may be FP8
    EMBEDDING = "embedding"
    NORM = "norm"
    ROUTER = "router"
    BIAS = "bias"  # kept fp32: rounding it changes which experts are chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor that a checkpoint must hold. `expert` is None for what every rank holds."""

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    expert: int | None = None


def is_fp8(spec: TensorSpec, config: ModelConfig) -> bool:
    """Whether a model's FP8 format quantises a tensor: linears but the head and MTP's projection (model-spec §4)."""
    is_kept = spec.name == "lm_head.weight" or spec.name.endswith(".eh_proj.weight")
    return config.quantization is not None and spec.kind is TensorKind.LINEAR and not is_kept


def expected_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """All tensors of a checkpoint of this shape, the MTP layer's included when it has one."""
    hidden, vocab = config.hidden_size, config.vocab_size
    yield TensorSpec(name="model.word_embeddings.weight", shape=(vocab, hidden), kind=TensorKind.EMBEDDING)
    for layer in range(config.num_hidden_layers):
        yield from _layer(config, layer, is_moe=layer >= config.first_k_dense_replace)
    for layer in range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers):
        yield from _layer(config, layer, is_moe=True)
        for name in ("enorm", "hnorm", "final_layernorm"):
            yield TensorSpec(name=f"model.layers.{layer}.{name}.weight", shape=(hidden,), kind=TensorKind.NORM)
        name = f"model.layers.{layer}.eh_proj.weight"
        yield TensorSpec(name=name, shape=(hidden, 2 * hidden), kind=TensorKind.LINEAR)
    yield TensorSpec(name="model.norm.weight", shape=(hidden,), kind=TensorKind.NORM)
    if not config.tie_word_embeddings:
        yield TensorSpec(name="lm_head.weight", shape=(vocab, hidden), kind=TensorKind.LINEAR)


def _layer(config: ModelConfig, layer: int, *, is_moe: bool) -> Iterator[TensorSpec]:
    prefix, hidden = f"model.layers.{layer}", config.hidden_size
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(name=f"{prefix}.{name}.weight", shape=(hidden,), kind=TensorKind.NORM)
    for name in ("query_layernorm", "key_layernorm"):
        yield TensorSpec(name=f"{prefix}.attention.{name}.weight", shape=(config.head_dim,), kind=TensorKind.NORM)
    attended = config.num_attention_heads * config.head_dim
    for name, shape in (("query_key_value", (config.qkv_size, hidden)), ("dense", (hidden, attended))):
        yield TensorSpec(name=f"{prefix}.attention.{name}.weight", shape=shape, kind=TensorKind.LINEAR)
    yield from _moe(config, f"{prefix}.mlp") if is_moe else _ffn(f"{prefix}.mlp", hidden, config.intermediate_size)


def _moe(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    experts, hidden = config.num_experts, config.hidden_size
    yield TensorSpec(name=f"{prefix}.gate.weight", shape=(experts, hidden), kind=TensorKind.ROUTER)
    if config.moe_router_enable_expert_bias:
        yield TensorSpec(name=f"{prefix}.gate.expert_bias", shape=(experts,), kind=TensorKind.BIAS)
    for expert in range(experts):
        yield from _ffn(f"{prefix}.experts.{expert}", hidden, config.moe_intermediate_size, expert)
    yield from _ffn(f"{prefix}.shared_experts", hidden, config.shared_expert_size)


def _ffn(prefix: str, hidden: int, width: int, expert: int | None = None) -> Iterator[TensorSpec]:
    for name, shape in (("gate_proj", (width, hidden)), ("up_proj", (width, hidden)), ("down_proj", (hidden, width))):
        yield TensorSpec(name=f"{prefix}.{name}.weight", shape=shape, kind=TensorKind.LINEAR, expert=expert)
