"""The shape of the network that is trained, and the `config.json` that says it to every engine."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes and constants of one BailingMoeV2 (names as in `config.json`; model-spec §1)."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_experts: int = 16
    n_group: int = 4
    topk_group: int = 2
    num_experts_per_tok: int = 4
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 1
    partial_rotary_factor: float = 0.5
    rope_theta: float = 600000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048

    @property
    def rotary_dim(self) -> int:
        """How many leading dimensions of a head are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def qkv_rows(self) -> int:
        """Output rows of the fused projection: all Q, all K, all V."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim


PRESETS = {  # the model that ships, and one for tests: seconds instead of an hour
    "demo": Shape(),
    "smoke": Shape(
        hidden_size=64, num_hidden_layers=2, head_dim=16, intermediate_size=64, moe_intermediate_size=32, topk_group=2
    ),
}


def hf_config(shape: Shape, *, pad_token_id: int, eos_token_id: int, bos_token_id: int) -> dict[str, Any]:
    """Every key of `config.json`, none left to a class default."""
    return {
        "architectures": ["BailingMoeV2ForCausalLM"],
        "model_type": "bailing_moe",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "moe_intermediate_size": shape.moe_intermediate_size,
        "moe_shared_expert_intermediate_size": shape.moe_intermediate_size,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_shared_experts": 1,
        "first_k_dense_replace": shape.first_k_dense_replace,
        "n_group": shape.n_group,
        "topk_group": shape.topk_group,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "routed_scaling_factor": shape.routed_scaling_factor,
        "norm_topk_prob": True,
        "router_dtype": "fp32",
        "use_qk_norm": True,
        "use_rmsnorm": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "partial_rotary_factor": shape.partial_rotary_factor,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "bos_token_id": bos_token_id,
        "pad_token_id": pad_token_id,
        "eos_token_id": eos_token_id,
        "initializer_range": 0.02,
        "max_window_layers": shape.num_hidden_layers,
        "output_router_logits": False,
        "use_cache": True,
        "num_nextn_predict_layers": 1,
        "mtp_loss_scaling_factor": 0,
        "torch_dtype": "bfloat16",
    }
