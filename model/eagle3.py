"""The EAGLE3 draft head: one dense layer over the model's inner states, with a head over part of the vocabulary.

Row i holds the state of position i and the token at i + 1; it predicts the token at i + 2. The first state is fused
from what the model's layers received, further ones are the head's own output before its norm.
Source: speculative-decoding notes §1, model-spec §6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from experts.layout import ExpertShape
from experts.shard import ExpertShard
from kernels.paged_attention import WHOLE_CONTEXT, KVLayer, paged_attention
from kernels.rope_kv import qk_norm_rope_kv
from model.batch import Batch, ModelOutput
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from model.eagle3_tensors import read_tensors
from model.linear import Linear
from model.moe import DenseFfn
from model.norm import RmsNorm
from model.rope import cos_sin_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Attention:
    """Attention over embedding and state side by side, without QK-norm, with optional biases."""

    query_key_value: Linear  # [(A + 2 A_kv) D, 2h]: all Q, all K, all V
    query_key_value_bias: torch.Tensor | None
    output: Linear
    output_bias: torch.Tensor | None
    cos_sin: torch.Tensor  # [P, rotary_dim] fp32
    scale: float
    window: int  # positions that a row sees, its own included

    def __call__(self, rows: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        """From rows [T, 2h] to [T, h]; keys and values are written into `kv` first."""
        qkv = self.query_key_value(rows)
        if self.query_key_value_bias is not None:
            qkv += self.query_key_value_bias
        query = qk_norm_rope_kv(qkv, None, None, self.cos_sin, batch.positions, batch.slots, kv, 0.0)
        where = (batch.block_tables, batch.row_starts, batch.context_lens, batch.positions)
        attended = self.output(paged_attention(query, kv, *where, self.scale, self.window, batch.max_rows))
        return attended if self.output_bias is None else attended.add_(self.output_bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Head:
    """A draft model. Replicated on every rank: no collective in drafting."""

    is_collective: ClassVar[bool] = False

    capture_layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    embedding: torch.Tensor  # [V, h]
    joint_norm: RmsNorm | None  # over all captured states together, before fc
    state_norms: tuple[RmsNorm, ...]  # over each captured state, before fc; or none
    fc: Linear  # [h, C * H]
    embedding_norm: RmsNorm
    hidden_norm: RmsNorm
    attention: Eagle3Attention
    post_attention_norm: RmsNorm
    ffn: DenseFfn
    final_norm: RmsNorm
    lm_head: Linear  # [Vd, h]
    target_ids: torch.Tensor | None  # [Vd] int64, the model's id of each draft id; None: they are the same
    feeds_back_normed: bool
    has_normed_residual: bool

    def first_states(self, output: ModelOutput) -> torch.Tensor:
        """Fuse what the model's layers received, [T, C * H] -> [T, h]."""
        captured = output.captured
        assert captured is not None, "the forward pass captured nothing"
        if self.joint_norm is not None:
            captured = self.joint_norm(captured)
        if self.state_norms:
            parts = captured.chunk(len(self.state_norms), dim=1)
            captured = torch.cat(
                [norm(part.contiguous()) for norm, part in zip(self.state_norms, parts, strict=True)], 1
            )
        return self.fc(captured)

    def forward(self, states: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        """One pass over states [T, h], which are overwritten; returns the states of the next step, [T, h].

        `batch` holds the tokens at i + 1 with the positions i, and `kv` is this head's own. T = 0 is valid.
        """
        embedded = self.embedding_norm(self.embedding.index_select(0, batch.token_ids))
        normed = self.hidden_norm(states)
        residual = normed if self.has_normed_residual else states
        attended = self.attention(torch.cat([embedded, normed], dim=1), batch, kv)
        out = self.ffn(self.post_attention_norm.after_add(residual, attended))
        if self.feeds_back_normed:
            return self.final_norm.after_add(residual, out)
        return residual.add_(out)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Over the draft vocabulary (see `target_ids`), from states of `forward` [S, h]: [S, Vd] fp32."""
        return self.lm_head.fp32(states if self.feeds_back_normed else self.final_norm(states))


def load_eagle3(
    path: str | Path,
    target: ModelConfig,
    embedding: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    lm_head: Linear | None = None,
) -> Eagle3Head:
    """Load a head for a model with this embedding [V, H] and, if the head may share it, this `lm_head` [V, H].

    A head without an embedding uses the model's, and so does one whose own is a copy of it. Raises CheckpointError
    naming what is at fault.
    """
    config = Eagle3Config.from_dir(path, target)
    tensors = read_tensors(path, config, target, may_share_lm_head=lm_head is not None)
    target_ids = tensors.pop("target_ids", None)
    weights = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    own = weights.pop("embed_tokens.weight", None)
    if own is None or torch.equal(own, embedding):
        own = embedding
    if config.tie_word_embeddings:
        lm_head = Linear.pack(own)
    elif "lm_head.weight" in weights:
        lm_head = Linear.pack(weights["lm_head.weight"])
    assert lm_head is not None, "read_tensors lets no head without one pass"
    return build_eagle3(config, target, weights, own, lm_head, None if target_ids is None else target_ids.to(device))


def build_eagle3(
    config: Eagle3Config,
    target: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    embedding: torch.Tensor,
    lm_head: Linear,
    target_ids: torch.Tensor | None,
) -> Eagle3Head:
    """A head from its weights by our names (`model.eagle3_shapes`), all of one dtype on one device."""

    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights[f"{name}.weight"], config.rms_norm_eps)

    return Eagle3Head(
        capture_layers=config.capture_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        embedding=embedding,
        joint_norm=norm("input_norm") if config.norm_before_fc else None,
        state_norms=tuple(norm(f"fc_norm.{i}") for i in range(len(config.capture_layers) if config.fc_norm else 0)),
        fc=Linear.pack(weights["fc.weight"]),
        embedding_norm=norm("layer.input_layernorm"),
        hidden_norm=norm("layer.hidden_norm"),
        attention=_attention(config, target, weights),
        post_attention_norm=norm("layer.post_attention_layernorm"),
        ffn=_ffn(config, weights),
        final_norm=norm("norm"),
        lm_head=lm_head,
        target_ids=target_ids,
        feeds_back_normed=config.norm_output,
        has_normed_residual=config.norm_before_residual,
    )


def _attention(config: Eagle3Config, target: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Eagle3Attention:
    inputs = [f"layer.self_attn.{name}_proj" for name in "qkv"]
    biases = [weights[f"{name}.bias"] for name in inputs] if config.attention_bias else []
    return Eagle3Attention(
        query_key_value=Linear.pack(torch.cat([weights[f"{name}.weight"] for name in inputs])),
        query_key_value_bias=torch.cat(biases) if biases else None,
        output=Linear.pack(weights["layer.self_attn.o_proj.weight"]),
        output_bias=weights["layer.self_attn.o_proj.bias"] if config.attention_bias else None,
        # Whatever the head was trained on, it may be asked at any position of the model's context.
        cos_sin=cos_sin_table(config.rope, target.max_context, weights["norm.weight"].device),
        scale=config.head_dim**-0.5,
        window=config.sliding_window or WHOLE_CONTEXT,
    )


def _ffn(config: Eagle3Config, weights: Mapping[str, torch.Tensor]) -> DenseFfn:
    gate, up, down = (weights[f"layer.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    shape = ExpertShape(hidden_size=config.hidden_size, width=config.intermediate_size)
    shard = ExpertShard.allocate(1, shape, gate.dtype, gate.device)
    shard.fill(0, gate, up, down)
    return DenseFfn(shard)
