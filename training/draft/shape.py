"""The shape of a draft head, and the `config.json` that says it to every engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from model.config import ModelConfig

LAYOUTS = ("sglang", "speculators")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShape:
    """Sizes and constants of one EAGLE3 head. `capture_layers`: the model's layers whose inputs it is fed with."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int  # of the head; a part of the model's
    capture_layers: tuple[int, ...]
    target_vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    @classmethod
    def beside(
        cls, target: ModelConfig, *, vocab_size: int, width: int | None, capture_layers: tuple[int, ...] | None
    ) -> Self:
        """A head as wide as the model, with its heads; `width` of the FFN defaults to 3.5 times the model's width.

        By default the states that layers 2, the middle one and the last but two receive are captured; of a model with
        too few of them for that, its last three.
        """
        num_layers = target.num_hidden_layers
        usual = (2, num_layers // 2, num_layers - 3)
        return cls(
            hidden_size=target.hidden_size,
            intermediate_size=width or target.hidden_size * 7 // 2,
            num_attention_heads=target.num_attention_heads,
            num_key_value_heads=target.num_key_value_heads,
            head_dim=target.head_dim,
            vocab_size=min(vocab_size, target.vocab_size),
            capture_layers=capture_layers or (usual if num_layers > 6 else tuple(range(num_layers))[-3:]),
            target_vocab_size=target.vocab_size,
            rms_norm_eps=target.rms_norm_eps,
            max_position_embeddings=target.max_context,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**{**fields, "capture_layers": tuple(fields["capture_layers"])})


def draft_config(shape: DraftShape, layout: str) -> dict[str, Any]:
    """The `config.json` of a head in one of `LAYOUTS`; the first names outputs of layers, the second layers run."""
    layer = {
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": 1,
        "vocab_size": shape.target_vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    common = {"draft_vocab_size": shape.vocab_size, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    if layout == "sglang":
        outputs = [layer_id - 1 for layer_id in shape.capture_layers]
        eagle = {"eagle_aux_hidden_state_layer_ids": outputs, "use_aux_hidden_state": True}
        return {"architectures": ["LlamaForCausalLMEagle3"], **layer, **common, "eagle_config": eagle}
    assert layout == "speculators", f"{layout} is none of {LAYOUTS}"
    off = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    return {
        "architectures": ["Eagle3Speculator"],
        "model_type": "speculators",
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"architectures": ["BailingMoeV2ForCausalLM"]},
        },
        "transformer_layer_config": layer,
        "eagle_aux_hidden_state_layer_ids": list(shape.capture_layers),
        "target_hidden_size": None,
        **dict.fromkeys(off, False),
        **common,
    }
