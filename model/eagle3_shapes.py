"""The tensors that an EAGLE3 head has, and how large they are."""

from __future__ import annotations

import math

from model.config import ModelConfig
from model.eagle3_config import Eagle3Config

OPTIONAL = ("embed_tokens.weight", "d2t", "t2d")


def expected_shapes(config: Eagle3Config, target: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a head may have, by name; the layer's are called `layer.*`."""
    hidden, captured = config.hidden_size, len(config.capture_layers) * target.hidden_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    width = config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, captured),
        "layer.input_layernorm.weight": (hidden,),
        "layer.hidden_norm.weight": (hidden,),
        "layer.post_attention_layernorm.weight": (hidden,),
        "layer.self_attn.q_proj.weight": (queries, 2 * hidden),
        "layer.self_attn.k_proj.weight": (keys, 2 * hidden),
        "layer.self_attn.v_proj.weight": (keys, 2 * hidden),
        "layer.self_attn.o_proj.weight": (hidden, queries),
        "layer.mlp.gate_proj.weight": (width, hidden),
        "layer.mlp.up_proj.weight": (width, hidden),
        "layer.mlp.down_proj.weight": (hidden, width),
        "norm.weight": (hidden,),
        "embed_tokens.weight": (target.vocab_size, hidden),
        "d2t": (config.draft_vocab_size,),
        "t2d": (target.vocab_size,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.draft_vocab_size, hidden)
    if config.norm_before_fc:
        shapes["input_norm.weight"] = (captured,)
    if config.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": (target.hidden_size,) for i in range(len(config.capture_layers))}
    if config.attention_bias:
        sizes = {"q": queries, "k": keys, "v": keys, "o": hidden}
        shapes |= {f"layer.self_attn.{name}_proj.bias": (size,) for name, size in sizes.items()}
    return shapes


def required_names(config: Eagle3Config, target: ModelConfig) -> set[str]:
    """The tensors that a head must have, unless it shares the model's `lm_head`."""
    names = {name for name in expected_shapes(config, target) if name not in OPTIONAL}
    if config.draft_vocab_size != target.vocab_size:
        names.add("d2t")
    if config.hidden_size != target.hidden_size:
        names.add("embed_tokens.weight")  # the model's own has another width
    return names


def num_parameters(config: Eagle3Config, target: ModelConfig) -> int:
    """Weights that a head holds in memory, where it uses the model's embedding if that fits."""
    shapes, names = expected_shapes(config, target), required_names(config, target) - {"d2t"}
    # A tied head is packed on its own, for the kernel that reads it.
    tied = target.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    return sum(math.prod(shapes[name]) for name in names) + tied
