"""Who holds which experts, and whether it fits: said before a byte is read or a process started.

Pure: neither torch nor Ray. The rules are those of `engine.memory` and `engine.build`; tests hold this to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from cluster.config import ConfigMistake
from cluster.draft_share import NOTHING_DRAFTED, DraftShare
from cluster.weight_sums import ITEMSIZE, Formats, Part, Weights, WeightSums, sum_weights
from engine.config import EngineConfig, KernelChoice, KVPrecision, Precision
from engine.graphs.sizes import graph_bytes, runs_graphs
from model.config import ModelConfig
from router.placement import Placement


class DoesNotFit(ConfigMistake):
    """A configuration for which the memory does not suffice. The message says what is needed and what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRequest:
    """What is asked of each rank; fields as in EngineConfig. Without `memory_bytes` nothing is said about fitting."""

    num_ranks: int
    precision: Precision = Precision.BF16
    memory_bytes: int | None = None  # of one rank: its device's, or its share of what is free on its machine
    kv_bytes: int | None = None
    kv_fraction: float = 0.5
    kv_precision: KVPrecision = KVPrecision.AUTO
    block_size: int = 16
    max_rows_per_step: int = 2048
    max_sequences: int = 256
    max_context: int | None = None
    draft: DraftShare = NOTHING_DRAFTED
    channel_scale_itemsize: int = 4  # of a per-channel FP8 checkpoint, whose config.json does not say: 4 or 2
    keeps_fp8: bool = False  # see `weight_sums.Formats`
    graph_bytes: int = 0  # of the recorded steps

    @property
    def kv_dtype(self) -> str:
        """Of keys and values in the cache, by name."""
        return self.precision.value if self.kv_precision is KVPrecision.AUTO else self.kv_precision.value

    @classmethod
    def from_engine(
        cls,
        engine: EngineConfig,
        model: ModelConfig,
        memory_bytes: int | None = None,
        draft: DraftShare = NOTHING_DRAFTED,
    ) -> Self:
        """What a rank of this configuration asks for. `num_blocks`, which no user can set, is not looked at."""
        return cls(
            num_ranks=engine.group_size,
            precision=engine.precision,
            memory_bytes=memory_bytes,
            kv_bytes=engine.kv_bytes,
            kv_fraction=engine.kv_fraction,
            kv_precision=engine.kv_precision,
            block_size=engine.block_size,
            max_rows_per_step=engine.max_rows_per_step,
            max_sequences=engine.max_sequences,
            max_context=engine.max_context,
            draft=draft,
            keeps_fp8=engine.device.startswith("cuda") and engine.kernels is not KernelChoice.TORCH,
            graph_bytes=graph_bytes(engine, model) if runs_graphs(engine, engine.device) else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What one rank holds."""

    rank: int
    experts: tuple[int, ...]
    weights: dict[Part, Weights]
    activation_bytes: int  # most that a step may need beside weights and KV cache
    kv_blocks: int
    kv_bytes: int

    @property
    def total(self) -> Weights:
        """All parts together."""
        return sum(self.weights.values(), Weights())

    @property
    def used_bytes(self) -> int:
        """Weights, activations and KV cache, in memory."""
        return self.total.loaded_bytes + self.activation_bytes + self.kv_bytes


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


def plan(model: ModelConfig, request: CapacityRequest) -> CapacityPlan:
    """Place the experts and sum up. Raises DoesNotFit where a rank's memory does not hold its share."""
    formats = Formats(
        precision=request.precision,
        channel_scale_itemsize=request.channel_scale_itemsize,
        keeps_fp8=request.keeps_fp8,
    )
    sums = sum_weights(model, formats)
    placement = Placement.even(model.num_experts, request.num_ranks)
    ranks = tuple(_rank(model, request, sums, index, experts) for index, experts in enumerate(placement.experts))
    for rank in ranks:
        if _is_too_large(rank, request):
            raise DoesNotFit(_refusal(rank, model, request, sums))
    return CapacityPlan(
        model=model,
        request=request,
        checkpoint=sum(sums.on_rank(model.num_experts).values(), Weights()),
        expert=sums.expert,
        ranks=ranks,
        max_context=_max_context(model, request),
        kv_bytes_per_token=kv_bytes_per_token(model, request),
    )


def kv_bytes_per_token(model: ModelConfig, request: CapacityRequest) -> int:
    """Keys and values of one position in all layers, a draft model's included."""
    values = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
    return (values + request.draft.kv_values_per_token) * ITEMSIZE[request.kv_dtype]


def activation_bytes(model: ModelConfig, request: CapacityRequest, num_local_experts: int) -> int:
    """Most bytes that a step of T = max_rows_per_step rows needs on a rank: a bound, not a measurement.

    With a bytes per value: the rotary table, residual and normed rows (2 a T H), and the largest of
    attention  a T (QKV + 2 A D + H)              fused projection, rotated queries, attended, projected
    dense FFN  a T (I_dense + H)
    exchange   a ((T K + 2 R) H + R I) + 4 T E    copies sent, rows received and sorted, inner width, scores
    logits     2 * 4 T V                          where every row asks for its log-probabilities
    R = G T min(K, local experts): every row of every rank may choose this rank's experts.
    """
    size, rows, hidden = ITEMSIZE[request.precision.value], request.max_rows_per_step, model.hidden_size
    attended = model.num_attention_heads * model.head_dim
    copies = rows * model.num_experts_per_tok
    received = request.num_ranks * rows * min(model.num_experts_per_tok, num_local_experts)
    exchanged = (copies + 2 * received) * hidden + received * model.moe_intermediate_size
    largest = max(
        size * rows * (model.qkv_size + 2 * attended + hidden),
        size * rows * (model.intermediate_size + hidden),
        size * exchanged + 4 * rows * model.num_experts,
        2 * 4 * rows * model.vocab_size,
    )
    return 4 * model.max_context * model.rope.rotary_dim + size * 2 * rows * hidden + largest


def draft_weights(request: CapacityRequest) -> Weights:
    """The EAGLE3 head, whole on every rank; it is no part of the checkpoint."""
    count = request.draft.num_parameters
    return Weights(num_parameters=count, loaded_bytes=count * ITEMSIZE[request.precision.value])


def _rank(
    model: ModelConfig, request: CapacityRequest, sums: WeightSums, index: int, experts: tuple[int, ...]
) -> RankPlan:
    weights = sums.on_rank(len(experts))
    if request.draft.num_parameters:
        weights[Part.DRAFT] = draft_weights(request)
    per_block = kv_bytes_per_token(model, request) * request.block_size
    loaded_bytes = sum(part.loaded_bytes for part in weights.values())
    kv_blocks = _kv_blocks(request, per_block, _max_context(model, request), loaded_bytes)
    return RankPlan(
        rank=index,
        experts=experts,
        weights=weights,
        activation_bytes=activation_bytes(model, request, len(experts))
        + request.draft.proposal_bytes
        + request.graph_bytes,
        kv_blocks=kv_blocks,
        kv_bytes=kv_blocks * per_block,
    )


def _max_context(model: ModelConfig, request: CapacityRequest) -> int:
    return min(request.max_context or model.max_context, model.max_context)


def _kv_blocks(request: CapacityRequest, per_block: int, max_context: int, loaded_bytes: int) -> int:
    """As `engine.memory.kv_blocks`: what was asked for, or what can be used of a share of the memory left."""
    if request.kv_bytes is not None:
        return request.kv_bytes // per_block
    useful = request.max_sequences * -(-max_context // request.block_size)
    if request.memory_bytes is None:
        return useful
    left = max(request.memory_bytes - loaded_bytes - request.draft.proposal_bytes - request.graph_bytes, 0)
    return min(useful, int(left * request.kv_fraction) // per_block)


def _is_too_large(rank: RankPlan, request: CapacityRequest) -> bool:
    if rank.kv_blocks < 1:
        return True
    return request.memory_bytes is not None and rank.used_bytes > request.memory_bytes


def _refusal(rank: RankPlan, model: ModelConfig, request: CapacityRequest, sums: WeightSums) -> str:
    per_block = kv_bytes_per_token(model, request) * request.block_size
    if request.kv_bytes is not None and request.kv_bytes < per_block:
        return f"engine.kv_cache_size: {request.kv_bytes} bytes hold no block; one needs {per_block}"
    assert request.memory_bytes is not None, "without a known memory everything fits"
    kv_bytes = max(rank.kv_bytes, per_block)  # a rank must hold one block at least
    needed = rank.total.loaded_bytes + rank.activation_bytes + kv_bytes
    return (
        f"cluster.ranks: with {request.num_ranks}, rank {rank.rank} needs {readable(needed)} "
        f"(weights {readable(rank.total.loaded_bytes)}, activations up to {readable(rank.activation_bytes)}, "
        f"KV cache {readable(kv_bytes)}) and {readable(request.memory_bytes)} are available; "
        + _advice(rank, model, request, sums)
    )


def _advice(rank: RankPlan, model: ModelConfig, request: CapacityRequest, sums: WeightSums) -> str:
    """What to change, most useful first."""
    advice = []
    for num_ranks in range(request.num_ranks + 1, model.num_experts + 1):
        wider = replace(request, num_ranks=num_ranks)
        first = _rank(model, wider, sums, 0, Placement.even(model.num_experts, num_ranks).local_experts(0))
        if not _is_too_large(first, wider):
            advice.append(f"use {num_ranks} ranks or more")
            break
    if request.precision is Precision.FP32:
        advice.append("set model.dtype to bfloat16")
    if rank.total.loaded_bytes < (request.memory_bytes or 0):
        size = "engine.kv_fraction" if request.kv_bytes is None else "engine.kv_cache_size"
        advice.append(f"lower engine.max_rows_per_step or {size}")
    return ", or ".join(advice) or "devices with more memory are needed"


def readable(num_bytes: int) -> str:
    """Bytes for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes} B"
