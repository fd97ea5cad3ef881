"""BailingMoeV2 from the formulas of model-spec §2 and §5: slow, without cache, one row at a time where that is clearer.

Reads nothing of model/ but the configuration. Every number is computed in `dtype`, fp64 unless said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.config import ModelConfig


@dataclass
class Trace:
    """What one forward over T positions computed."""

    logits: Tensor  # [T, V]
    hidden: Tensor  # [T, H] after the final norm
    residuals: list[Tensor] = field(default_factory=list)  # [T, H] as layer i receives it, then the last output
    experts: list[list[set[int]]] = field(default_factory=list)  # [MoE layer][row]


class ReferenceModel:
    """Weights under their published names."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64):
        self.config = config
        self.dtype = dtype
        self.tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def forward(self, token_ids: list[int]) -> Trace:
        """One sequence, positions 0 .. T - 1."""
        x = self.tensors["model.word_embeddings.weight"][token_ids]
        trace = Trace(logits=x, hidden=x)
        for layer in range(self.config.num_hidden_layers):
            trace.residuals.append(x)
            x = self.layer(layer, x, trace)
        trace.residuals.append(x)
        trace.hidden = self.norm(x, "model.norm")
        trace.logits = self.head(trace.hidden)
        return trace

    def mtp(self, hidden: Tensor, next_ids: list[int]) -> Tensor:
        """States of the MTP layer [T, H], from the main model's [T, H] at i and the tokens at i + 1 (§5)."""
        layer = self.config.num_hidden_layers
        prefix = f"model.layers.{layer}"
        embedded = self.norm(self.tensors["model.word_embeddings.weight"][next_ids], f"{prefix}.enorm")
        both = torch.cat([embedded, self.norm(hidden, f"{prefix}.hnorm")], dim=-1)
        z = both @ self.tensors[f"{prefix}.eh_proj.weight"].T
        z = self.layer(layer, z, Trace(logits=z, hidden=z))
        return self.norm(z, f"{prefix}.final_layernorm")

    def head(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits of normed states."""
        name = "model.word_embeddings.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        return hidden @ self.tensors[name].T

    def layer(self, layer: int, x: Tensor, trace: Trace) -> Tensor:
        """One pre-norm layer."""
        prefix = f"model.layers.{layer}"
        x = x + self.attention(f"{prefix}.attention", self.norm(x, f"{prefix}.input_layernorm"))
        normed = self.norm(x, f"{prefix}.post_attention_layernorm")
        if layer < self.config.first_k_dense_replace:
            return x + self.ffn(f"{prefix}.mlp", normed)
        return x + self.moe(f"{prefix}.mlp", normed, trace)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm over the last axis."""
        u = x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return self.tensors[f"{name}.weight"] * u

    def attention(self, prefix: str, x: Tensor) -> Tensor:
        """Causal attention with grouped key/value heads."""
        config, rows = self.config, len(x)
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        qkv = x @ self.tensors[f"{prefix}.query_key_value.weight"].T
        q, k, v = torch.split(qkv, [heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        q = self.rotate(self.norm(q.view(rows, heads, dim), f"{prefix}.query_layernorm"))
        k = self.rotate(self.norm(k.view(rows, kv_heads, dim), f"{prefix}.key_layernorm"))
        v = v.view(rows, kv_heads, dim)
        out = torch.empty_like(q)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, shared].T / math.sqrt(dim)
            scores = scores.masked_fill(torch.ones(rows, rows).triu(1).bool(), -math.inf)
            out[:, head] = scores.softmax(-1) @ v[:, shared]
        return out.flatten(1) @ self.tensors[f"{prefix}.dense.weight"].T

    def rotate(self, z: Tensor) -> Tensor:
        """Rotate the first dimensions of z [T, heads, D] by position."""
        size = self.config.rope.rotary_dim
        cos, sin = self.cos_sin(len(z))
        a, b, rest = z[..., : size // 2], z[..., size // 2 : size], z[..., size:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def cos_sin(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """[T, 1, rotary_dim / 2] each."""
        frequencies = torch.tensor([self.frequency(i) for i in range(self.config.rope.rotary_dim // 2)])
        angles = torch.arange(num_positions, dtype=torch.float64)[:, None, None] * frequencies
        rope, stretch = self.config.rope, 1.0
        if rope.rope_type == "yarn":
            stretch = rope.attention_factor or 0.1 * math.log(rope.factor) + 1
        return (angles.cos() * stretch).to(self.dtype), (angles.sin() * stretch).to(self.dtype)

    def frequency(self, i: int) -> float:
        """Radians per position of rotated pair i."""
        rope = self.config.rope
        size, theta, length = rope.rotary_dim, rope.rope_theta, rope.original_max_position_embeddings
        plain: float = theta ** (-2 * i / size)
        if rope.rope_type == "default":
            return plain
        low = max(math.floor(size * math.log(length / (2 * math.pi * rope.beta_fast)) / (2 * math.log(theta))), 0)
        high = min(
            math.ceil(size * math.log(length / (2 * math.pi * rope.beta_slow)) / (2 * math.log(theta))), size - 1
        )
        ramp = min(max((i - low) / (high - low or 0.001), 0.0), 1.0)
        return plain * ((1 - ramp) + ramp / rope.factor)

    def ffn(self, prefix: str, x: Tensor) -> Tensor:
        """SwiGLU."""
        gate, up, down = (self.tensors[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        a = x @ gate.T
        return (a * torch.sigmoid(a) * (x @ up.T)) @ down.T

    def moe(self, prefix: str, x: Tensor, trace: Trace) -> Tensor:
        """Row by row: choose, run, weigh, add the shared expert."""
        rows, chosen = [], []
        for row in x:
            weights = self.choose(prefix, row)
            routed = sum(w * self.ffn(f"{prefix}.experts.{e}", row) for e, w in weights.items())
            rows.append(routed + self.ffn(f"{prefix}.shared_experts", row))
            chosen.append(set(weights))
        trace.experts.append(chosen)
        return torch.stack(rows) if rows else x

    def choose(self, prefix: str, row: Tensor) -> dict[int, Tensor]:
        """Weight per chosen expert of one row [H]."""
        config = self.config
        scores = torch.sigmoid(self.tensors[f"{prefix}.gate.weight"] @ row)
        bias = self.tensors.get(f"{prefix}.gate.expert_bias", torch.zeros_like(scores))
        biased = (scores + bias).tolist()
        size = config.num_experts // config.n_group
        groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]
        best = sorted(groups, key=lambda group: -sum(sorted((biased[e] for e in group), reverse=True)[:2]))
        kept = [e for group in best[: config.topk_group] for e in group]
        ids = sorted(kept, key=lambda e: -biased[e])[: config.num_experts_per_tok]
        total = sum(scores[e] for e in ids) + 1e-20
        return {e: scores[e] / total * config.routed_scaling_factor for e in ids}
