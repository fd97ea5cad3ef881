"""The same weights in transformers' Glm4MoeForCausalLM: the second oracle (model-spec §11)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from model.config import ModelConfig, Rope


def glm4_moe(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Glm4MoeForCausalLM:
    """An fp32 model, eager attention and experts."""
    theirs = Glm4MoeConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=_rope(config.rope, config.head_dim),
        moe_intermediate_size=config.moe_intermediate_size,
        num_experts_per_tok=config.num_experts_per_tok,
        n_shared_experts=config.num_shared_experts,
        n_routed_experts=config.num_experts,
        routed_scaling_factor=config.routed_scaling_factor,
        n_group=config.n_group,
        topk_group=config.topk_group,
        first_k_dense_replace=config.first_k_dense_replace,
        use_qk_norm=True,
        pad_token_id=None,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = Glm4MoeForCausalLM(theirs).eval()
    model.load_state_dict(_renamed(config, tensors), strict=True)
    return model


def expert_sets(model: Glm4MoeForCausalLM, token_ids: list[int]) -> tuple[Tensor, list[list[set[int]]]]:
    """Logits [T, V], and the experts of each row of each MoE layer."""
    chosen: list[list[set[int]]] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _m, _i, out: chosen.append([set(ids) for ids in out[2].tolist()]))
        for layer in model.model.layers
        if hasattr(layer.mlp, "gate")
    ]
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, chosen


def _rope(rope: Rope, head_dim: int) -> dict[str, object]:
    fields: dict[str, object] = {
        "rope_type": rope.rope_type,
        "rope_theta": rope.rope_theta,
        "partial_rotary_factor": rope.rotary_dim / head_dim,
    }
    if rope.rope_type == "yarn":
        fields["factor"] = rope.factor
        fields["original_max_position_embeddings"] = rope.original_max_position_embeddings
    return fields


def _renamed(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> theirs (model-spec §3): QKV split, experts stacked with the gate first."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            continue
        new = name.replace("word_embeddings", "embed_tokens").replace(".attention.", ".self_attn.")
        new = new.replace("self_attn.dense", "self_attn.o_proj").replace("query_layernorm", "q_norm")
        new = new.replace("key_layernorm", "k_norm").replace("expert_bias", "e_score_correction_bias")
        if "query_key_value" in new:
            sizes = [n * config.head_dim for n in _head_counts(config)]
            for part, letter in zip(torch.split(tensor.float(), sizes), "qkv", strict=True):
                state[new.replace("query_key_value", f"{letter}_proj")] = part
            continue
        state[new] = tensor.float()
    for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([tensors[f"{prefix}.{e}.{name}_proj.weight"] for e in range(config.num_experts)]).float()
            for name in ("gate", "up", "down")
        )
        state[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        state[f"{prefix}.down_proj"] = down
    return state


def _head_counts(config: ModelConfig) -> tuple[int, int, int]:
    return config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
