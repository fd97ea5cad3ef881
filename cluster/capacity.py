"""Who holds what, and whether it fits: sums over names and shapes, before a byte is read or a process started.

Pure: neither torch nor Ray. The rules are those of `engine.memory` and `engine.build`, which tests hold it to.
"""

from __future__ import annotations

import enum
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Self

from cluster.config import ConfigMistake
from engine.config import EngineConfig, Precision
from model.config import ModelConfig
from model.tensors import TensorKind, TensorSpec, expected_tensors
from router.placement import Placement

# Bytes of a device, as its datasheet says: GB are taken as 10^9, a few percent below what its driver reports.
DEVICE_MEMORY = {"H20": 96 * 10**9, "H100": 80 * 10**9, "H200": 141 * 10**9}

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
_MAX_RANKS = 1024


class DoesNotFit(ConfigMistake):
    """A configuration for which the memory does not suffice. The message says what is needed and what there is."""


class Part(enum.Enum):
    """What weights are for."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    DENSE_FFN = "dense FFN"
    ROUTERS = "routers"
    SHARED_EXPERTS = "shared experts"
    ROUTED_EXPERTS = "routed experts"
    NORMS = "norms"
    MTP = "MTP layer"  # all of it but its routed experts, which are placed as the others are


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Tensors and their sizes. Scales of FP8 weights count as bytes on disk, not as parameters."""

    num_tensors: int = 0
    num_parameters: int = 0
    stored_bytes: int = 0  # as the checkpoint holds them
    loaded_bytes: int = 0  # as they lie in memory: dequantised, in the precision chosen

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            num_tensors=self.num_tensors + other.num_tensors,
            num_parameters=self.num_parameters + other.num_parameters,
            stored_bytes=self.stored_bytes + other.stored_bytes,
            loaded_bytes=self.loaded_bytes + other.loaded_bytes,
        )

    def __mul__(self, times: int) -> Weights:
        return Weights(
            num_tensors=self.num_tensors * times,
            num_parameters=self.num_parameters * times,
            stored_bytes=self.stored_bytes * times,
            loaded_bytes=self.loaded_bytes * times,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRequest:
    """What is asked of each rank; fields as in EngineConfig. Without `memory_bytes` nothing is said about fitting."""

    num_ranks: int
    precision: Precision = Precision.BF16
    memory_bytes: int | None = None  # of one rank: its device's, or its share of what is free on its machine
    kv_bytes: int | None = None
    kv_fraction: float = 0.5
    block_size: int = 16
    max_rows_per_step: int = 2048
    max_sequences: int = 256
    max_context: int | None = None
    scale_itemsize: int = 4  # of FP8 scales per channel: fp32, or 2 for bf16; those of blocks are fp32 always

    @classmethod
    def from_engine(cls, engine: EngineConfig, memory_bytes: int | None) -> Self:
        """The request that a rank of this configuration makes. `engine.num_blocks` belongs to tests and is left out."""
        return cls(
            num_ranks=engine.group_size,
            precision=engine.precision,
            memory_bytes=memory_bytes,
            kv_bytes=engine.kv_bytes,
            kv_fraction=engine.kv_fraction,
            block_size=engine.block_size,
            max_rows_per_step=engine.max_rows_per_step,
            max_sequences=engine.max_sequences,
            max_context=engine.max_context,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What one rank holds."""

    rank: int
    experts: tuple[int, ...]
    weights: dict[Part, Weights]
    activation_bytes: int  # most that a step may need beside weights and KV cache
    kv_blocks: int

    @property
    def total(self) -> Weights:
        """All parts together."""
        return sum(self.weights.values(), Weights())


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """The resolved plan of a group."""

    model: ModelConfig
    request: CapacityRequest
    checkpoint: Weights  # every tensor once
    expert: Weights  # one routed expert of one layer
    ranks: tuple[RankPlan, ...]
    max_context: int
    kv_bytes_per_token: int

    @property
    def kv_bytes_per_block(self) -> int:
        """Over all layers."""
        return self.kv_bytes_per_token * self.request.block_size

    def kv_tokens(self, rank: RankPlan) -> int:
        """Positions that the rank's KV cache holds."""
        return rank.kv_blocks * self.request.block_size

    def full_sequences(self, rank: RankPlan) -> int:
        """Sequences of `max_context` tokens that the rank's KV cache holds at once."""
        return rank.kv_blocks // -(-self.max_context // self.request.block_size)

    def used_bytes(self, rank: RankPlan) -> int:
        """Weights, activations and KV cache."""
        return rank.total.loaded_bytes + rank.activation_bytes + rank.kv_blocks * self.kv_bytes_per_block


def plan(model: ModelConfig, request: CapacityRequest) -> CapacityPlan:
    """Place the experts and sum up. Raises DoesNotFit where a rank's memory does not hold its share."""
    replicated, expert_of_layer, num_expert_layers = _sums(model, request)
    expert = expert_of_layer * num_expert_layers  # one expert id, in every layer that has experts
    placement = Placement.even(model.num_experts, request.num_ranks)
    max_context = min(request.max_context or model.max_context, model.max_context)
    per_token = kv_bytes_per_token(model, request.precision)
    ranks = []
    for rank, experts in enumerate(placement.experts):
        weights = replicated | {Part.ROUTED_EXPERTS: expert * len(experts)}
        loaded = sum(part.loaded_bytes for part in weights.values())
        held = RankPlan(
            rank=rank,
            experts=experts,
            weights=weights,
            activation_bytes=activation_bytes(model, request, len(experts)),
            kv_blocks=_kv_blocks(request, per_token * request.block_size, max_context, loaded),
        )
        _demand_room(held, request, per_token * request.block_size, _advice(model, request, replicated, expert))
        ranks.append(held)
    return CapacityPlan(
        model=model,
        request=request,
        checkpoint=sum(replicated.values(), expert * model.num_experts),
        expert=expert_of_layer,
        ranks=tuple(ranks),
        max_context=max_context,
        kv_bytes_per_token=per_token,
    )


def kv_bytes_per_token(model: ModelConfig, precision: Precision) -> int:
    """Keys and values of one position in all layers. The MTP layer has no cache yet."""
    values = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
    return values * _ITEMSIZE[precision.value]


def activation_bytes(model: ModelConfig, request: CapacityRequest, num_local_experts: int) -> int:
    """Most bytes that a step of T = max_rows_per_step rows needs on a rank; an upper bound, not a measurement.

    With a bytes per value: the rotary table, residual and normed rows, and the largest of
    attention  a T (QKV + 2 A D + H)          QKV, rotated queries, attended, projected
    dense FFN  a T (I + H)
    exchange   a ((T K + 2 R) H + R I) + 4 T E   copies sent, rows received and sorted (or answered), inner width;
               R = G T min(K, local experts): every row of every rank may choose this rank's experts
    logits     4 * 2 T V                      of rows that ask for prompt logprobs, and their log-softmax
    """
    size, rows, hidden = _ITEMSIZE[request.precision.value], request.max_rows_per_step, model.hidden_size
    received = request.num_ranks * rows * min(model.num_experts_per_tok, num_local_experts)
    copies = rows * model.num_experts_per_tok
    attended = model.num_attention_heads * model.head_dim
    attention = size * rows * (model.qkv_size + 2 * attended + hidden)
    dense = size * rows * (model.intermediate_size + hidden) if model.first_k_dense_replace else 0
    exchange = size * ((copies + 2 * received) * hidden + received * model.moe_intermediate_size)
    scores = 4 * rows * model.num_experts
    logits = 4 * 2 * rows * model.vocab_size
    rotary = 4 * model.max_context * model.rope.rotary_dim
    return rotary + size * 2 * rows * hidden + max(attention, dense, exchange + scores, logits)


def _sums(model: ModelConfig, request: CapacityRequest) -> tuple[dict[Part, Weights], Weights, int]:
    """What every rank holds, by part; one routed expert of one layer; how many layers have routed experts."""
    replicated: dict[Part, Weights] = {}
    expert, num_expert_layers = Weights(), 0
    for spec in expected_tensors(model):
        part = _part(spec, model)
        if spec.expert is None:
            replicated[part] = replicated.get(part, Weights()) + _weights(spec, part, model, request)
        elif spec.expert == 0:  # the others are alike
            is_first = num_expert_layers == 0
            num_expert_layers += spec.name.endswith("gate_proj.weight")
            if is_first or num_expert_layers == 1:
                expert += _weights(spec, part, model, request)
    if model.tie_word_embeddings:  # the head is laid out apart for reading; the checkpoint has no second copy
        tied = replicated[Part.EMBEDDING]
        replicated[Part.HEAD] = Weights(loaded_bytes=tied.loaded_bytes)
    return replicated, expert, num_expert_layers


_PARTS = (
    (r"word_embeddings\.", Part.EMBEDDING),
    (r"^lm_head\.", Part.HEAD),
    (r"\.experts\.\d+\.", Part.ROUTED_EXPERTS),
    (r"\.shared_experts\.", Part.SHARED_EXPERTS),
    (r"\.mlp\.gate\.", Part.ROUTERS),
    (r"norm\.weight$", Part.NORMS),
    (r"\.attention\.", Part.ATTENTION),
    (r"\.mlp\.", Part.DENSE_FFN),
)


def _part(spec: TensorSpec, model: ModelConfig) -> Part:
    if spec.expert is None and spec.name.startswith(f"model.layers.{model.num_hidden_layers}."):
        return Part.MTP
    return next(part for pattern, part in _PARTS if re.search(pattern, spec.name))


def _weights(spec: TensorSpec, part: Part, model: ModelConfig, request: CapacityRequest) -> Weights:
    """One tensor. FP8 formats quantise every linear but the head and the MTP layer's projection (model-spec §4)."""
    count, stays_fp32 = math.prod(spec.shape), spec.kind in (TensorKind.ROUTER, TensorKind.BIAS)
    stored = count * (4 if spec.kind is TensorKind.BIAS else _ITEMSIZE[model.torch_dtype])
    is_plain = part is Part.HEAD or spec.name.endswith(".eh_proj.weight")
    if model.quantization is not None and spec.kind is TensorKind.LINEAR and not is_plain:
        itemsize = 4 if model.quantization.quant_method == "fp8" else request.scale_itemsize
        stored = count + itemsize * math.prod(model.quantization.scale_shape(*spec.shape))
    loaded = count * (4 if stays_fp32 else _ITEMSIZE[request.precision.value])
    return Weights(num_tensors=1, num_parameters=count, stored_bytes=stored, loaded_bytes=loaded)


def _kv_blocks(request: CapacityRequest, per_block: int, max_context: int, loaded_bytes: int) -> int:
    """As `engine.memory.kv_blocks`: what was asked for, or what can be used of a fraction of the memory left."""
    if request.kv_bytes is not None:
        return request.kv_bytes // per_block
    useful = request.max_sequences * -(-max_context // request.block_size)
    if request.memory_bytes is None:
        return useful
    left = max(request.memory_bytes - loaded_bytes, 0)
    return min(useful, int(left * request.kv_fraction) // per_block)
