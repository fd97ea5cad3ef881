"""How fast a group can be at best: bytes and operations of a step against what a GPU moves and computes.

docs/capacity-plan.md states every formula and where each assumption comes from. B: sequences on a rank; G: ranks;
T = B G: rows of a step in the whole group; E, k: experts and those chosen per row; L: layers with experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.capacity import CapacityPlan
from cluster.devices import GB, Device
from cluster.weight_sums import Part

MEMORY_SHARE = 0.8  # of the datasheet's bandwidth: an assumption
LINK_SHARE = 0.7  # of a link's bandwidth in an all-to-all: an assumption
EXCHANGE_S = 20e-6  # of one all-to-all however little it moves: an assumption
NODE_LINK = 50 * GB  # bytes/s one way between nodes, for each GPU: an InfiniBand NDR port, 400 Gb/s
_SCALE_BLOCK = 128  # values that share a scale of 4 bytes in an FP8 payload

_DENSE_PARTS = (Part.ATTENTION, Part.DENSE_FFN, Part.SHARED_EXPERTS, Part.ROUTERS, Part.NORMS, Part.HEAD)


def distinct_experts(num_experts: int, num_chosen: int, num_rows: float) -> float:
    """N(T) = E (1 - (1 - k/E)^T): experts of a layer that T rows are expected to choose, each evenly."""
    missed: float = (1 - num_chosen / num_experts) ** num_rows
    return num_experts * (1 - missed)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One step of a rank."""

    memory_s: float
    compute_s: float
    exchange_s: float
    weight_bytes: float
    kv_bytes: float

    @property
    def step_s(self) -> float:
        """Memory and tensor cores work at the same time; the exchange stands between the layers."""
        return max(self.memory_s, self.compute_s) + self.exchange_s

    @property
    def bound(self) -> str:
        """What a faster part of would help most."""
        parts = {"memory": self.memory_s, "compute": self.compute_s, "all-to-all": self.exchange_s}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """A group on GPUs of one kind. `has_fp8_weights`: products run on the FP8 units."""

    plan: CapacityPlan
    device: Device
    has_fp8_weights: bool
    has_fp8_payload: bool
    ranks_per_node: int

    @property
    def num_ranks(self) -> int:
        """G."""
        return len(self.plan.ranks)

    @property
    def dispatch_bytes_per_copy(self) -> int:
        """A row on its way to one expert: its values, with scales where they are FP8."""
        hidden = self.plan.model.hidden_size
        return hidden + 4 * -(-hidden // _SCALE_BLOCK) if self.has_fp8_payload else self.combine_bytes_per_copy

    @property
    def combine_bytes_per_copy(self) -> int:
        """An expert's answer on its way back, in bf16."""
        return 2 * self.plan.model.hidden_size

    @property
    def exchange_bytes_per_token(self) -> int:
        """Both ways of all copies in all layers, those that stay on their own rank included."""
        model = self.plan.model
        copy = self.dispatch_bytes_per_copy + self.combine_bytes_per_copy
        return model.num_experts_per_tok * copy * model.num_moe_layers

    @property
    def dense_bytes(self) -> int:
        """Weights that a rank reads in every step whatever the rows choose. Of the embedding it reads single rows."""
        weights = self.plan.ranks[0].weights
        return sum(weights[part].loaded_bytes for part in _DENSE_PARTS if part in weights)

    def expert_bytes(self, num_rows: float) -> float:
        """Of the experts that the group's rows choose, those that the fullest rank holds."""
        model = self.plan.model
        fullest = max(len(rank.experts) for rank in self.plan.ranks)
        share = distinct_experts(model.num_experts, model.num_experts_per_tok, num_rows) / model.num_experts
        return fullest * share * self.plan.expert.loaded_bytes * model.num_moe_layers

    def decode(self, batch: float, context: float) -> StepCost:
        """A step in which `batch` sequences of a rank, `context` tokens long, yield a token each."""
        return self._step(rows=batch, scored=batch, kv_tokens=batch * context, attended=batch * context)

    def prefill(self, rows: float, context: float) -> StepCost:
        """A step of `rows` prompt rows on every rank, which stand on average half-way into `context` tokens."""
        # Rows of a chunk read the keys before them together, once.
        return self._step(rows=rows, scored=rows / context, kv_tokens=context / 2, attended=rows * context / 2)

    def _step(self, *, rows: float, scored: float, kv_tokens: float, attended: float) -> StepCost:
        weight_bytes = self.dense_bytes + self.expert_bytes(rows * self.num_ranks)
        kv_bytes = kv_tokens * self.plan.kv_bytes_per_token
        return StepCost(
            memory_s=(weight_bytes + kv_bytes) / (self.device.bandwidth * MEMORY_SHARE),
            compute_s=self._compute_s(rows, scored, attended),
            exchange_s=self._exchange_s(rows),
            weight_bytes=weight_bytes,
            kv_bytes=kv_bytes,
        )

    def _compute_s(self, rows: float, scored: float, attended: float) -> float:
        """Two operations a weight and row. Experts: a rank receives as many copies as it sends, when all are even."""
        model, weights = self.plan.model, self.plan.ranks[0].weights
        linear = sum(
            weights[part].num_parameters
            for part in (Part.ATTENTION, Part.DENSE_FFN, Part.SHARED_EXPERTS)
            if part in weights
        )
        routed = model.num_experts_per_tok * self.plan.expert.num_parameters * model.num_moe_layers
        head = weights[Part.HEAD].num_parameters or weights[Part.EMBEDDING].num_parameters
        products = 2 * rows * (linear + routed)
        # Head and routers are never FP8; scores and sums of attention are two operations a value each.
        attention = 4 * attended * model.num_attention_heads * model.head_dim * model.num_hidden_layers
        others = 2 * (scored * head + rows * weights[Part.ROUTERS].num_parameters) + attention
        share = self.device.compute_share
        return products / (self.device.flops(is_fp8=self.has_fp8_weights) * share) + others / (
            self.device.bf16_flops * share
        )

    def _exchange_s(self, rows: float) -> float:
        """Two all-to-alls a layer; copies for other nodes take another road, at the same time."""
        num_ranks, model = self.num_ranks, self.plan.model
        if num_ranks == 1:
            return 0.0
        num_near = min(num_ranks, self.ranks_per_node)
        num_bytes = rows * self.exchange_bytes_per_token
        near_s = num_bytes * (num_near - 1) / num_ranks / (self.device.link * LINK_SHARE)
        far_s = num_bytes * (num_ranks - num_near) / num_ranks / (NODE_LINK * LINK_SHARE)
        return max(near_s, far_s) + 2 * model.num_moe_layers * EXCHANGE_S
