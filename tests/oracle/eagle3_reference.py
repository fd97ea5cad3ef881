"""An EAGLE3 head as its formulas read: one dense sequence, plain torch, no cache (speculative-decoding notes §1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import silu

from model.eagle3_config import Eagle3Config


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


class Eagle3Reference:
    """Weights by the names of `expected_shapes` (the layer's as `layer.*`), in any dtype; computes in it."""

    def __init__(self, config: Eagle3Config, weights: Mapping[str, Tensor], embedding: Tensor) -> None:
        self.config, self.weights = config, weights
        self.embedding = weights.get("embed_tokens.weight", embedding)

    def fuse(self, captured: Tensor) -> Tensor:
        """Captured states [T, C * H] to [T, h]."""
        config, w = self.config, self.weights
        if config.norm_before_fc:
            captured = norm(captured, w["input_norm.weight"], config.rms_norm_eps)
        if config.fc_norm:
            parts = captured.chunk(len(config.capture_layers), -1)
            captured = torch.cat(
                [norm(part, w[f"fc_norm.{i}.weight"], config.rms_norm_eps) for i, part in enumerate(parts)], -1
            )
        return captured @ w["fc.weight"].T

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Rows 0 .. T - 1: states [T, h] with the tokens behind them; returns what is fed back, [T, h]."""
        config, w, eps = self.config, self.weights, self.config.rms_norm_eps
        embedded = norm(self.embedding[tokens], w["layer.input_layernorm.weight"], eps)
        normed = norm(states, w["layer.hidden_norm.weight"], eps)
        residual = normed if config.norm_before_residual else states
        residual = residual + self._attention(torch.cat([embedded, normed], -1))
        inner = norm(residual, w["layer.post_attention_layernorm.weight"], eps)
        gate, up, down = (w[f"layer.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        residual = residual + (silu(inner @ gate.T) * (inner @ up.T)) @ down.T
        return norm(residual, w["norm.weight"], eps) if config.norm_output else residual

    def logits(self, states: Tensor) -> Tensor:
        """Over the draft vocabulary."""
        if not self.config.norm_output:
            states = norm(states, self.weights["norm.weight"], self.config.rms_norm_eps)
        return states @ (self.embedding if self.config.tie_word_embeddings else self.weights["lm_head.weight"]).T

    def _attention(self, rows: Tensor) -> Tensor:
        config, w, length = self.config, self.weights, rows.shape[0]
        heads = {}
        for name, count in (("q", config.num_attention_heads), *((n, config.num_key_value_heads) for n in "kv")):
            projected = rows @ w[f"layer.self_attn.{name}_proj.weight"].T
            if config.attention_bias:
                projected = projected + w[f"layer.self_attn.{name}_proj.bias"]
            heads[name] = projected.view(length, count, config.head_dim).transpose(0, 1)
        positions = torch.arange(length, dtype=rows.dtype)
        half = config.rope.rotary_dim // 2
        angles = positions[:, None] * config.rope.rope_theta ** (-torch.arange(half, dtype=rows.dtype) / half)

        def rotated(x: Tensor) -> Tensor:
            a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
            return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), rest], -1)

        group = config.num_attention_heads // config.num_key_value_heads
        query, key = rotated(heads["q"]), rotated(heads["k"]).repeat_interleave(group, 0)
        scores = query @ key.transpose(-1, -2) * config.head_dim**-0.5
        distance = positions[:, None] - positions
        window = config.sliding_window or length
        scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
        mixed = scores.softmax(-1) @ heads["v"].repeat_interleave(group, 0)
        out: Tensor = mixed.transpose(0, 1).reshape(length, -1) @ w["layer.self_attn.o_proj.weight"].T
        return out + w["layer.self_attn.o_proj.bias"] if config.attention_bias else out
