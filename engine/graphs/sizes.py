"""Memory of the recorded steps, and whether there are any. No torch: a capacity plan asks, too."""

from __future__ import annotations

from engine.config import EngineConfig, GraphUse, KernelChoice, Precision
from engine.graphs.buckets import Bucket, Buckets
from model.config import ModelConfig

_SCRATCH_BYTES = 256 * 2**20  # of attention's splits at most: kernels/paged_attention/tiles.py
_MAX_SPLITS = 64
_CANDIDATES_BYTES = 4 * 1024  # of a row's draw: kernels/sample/triton_kernel.py
_GATE_SUMS = 32  # fp32 a row and expert at most: kernels/gate/tiles.py


def runs_graphs(config: EngineConfig, device: str) -> bool:
    """Whether steps run in fixed shapes on a device of this type.

    On the CPU nothing would be gained, and the torch references look at values on the host, which no graph can.
    """
    if config.graphs.use is GraphUse.AUTO:
        return device.startswith("cuda") and config.kernels is not KernelChoice.TORCH
    return config.graphs.use is GraphUse.UNRECORDED


def graph_bytes(config: EngineConfig, model: ModelConfig) -> int:
    """A bound on what the recorded steps need beside weights and KV cache. Not a measurement.

    Buckets share the memory of the largest. Every tensor of its layer counts as if none were freed before the layer's
    end; with T rows, G ranks, a bytes per value: residual and norms 4 a T H, attention a T (QKV + 2 A D + H) and the
    splits' sums, the exchange a ((2 G T + 4 G T K) H + G T K I), the gate's sums, logits twice and the candidates of
    a draw. Captured states and the buffers of every bucket come on top.
    """
    size = 4 if config.precision is Precision.FP32 else 2
    buckets = Buckets.of(config)
    rows, hidden = buckets.largest.num_rows, model.hidden_size
    everyones = config.group_size * rows
    copies = everyones * model.num_experts_per_tok
    attended = model.num_attention_heads * model.head_dim
    step = size * rows * (4 * hidden + model.qkv_size + 2 * attended + hidden)
    splits_sums = rows * model.num_attention_heads * _MAX_SPLITS * (model.head_dim + 1) * 4
    step += _SCRATCH_BYTES if config.batch_invariant else min(_SCRATCH_BYTES, splits_sums)
    step += size * ((2 * everyones + 4 * copies) * hidden + copies * model.moe_intermediate_size)
    step += rows * (_GATE_SUMS * 4 * model.num_experts + 2 * 4 * model.vocab_size + _CANDIDATES_BYTES)
    width = -(-longest_context(config, model) // config.block_size)
    return step + sum(
        _kept_bytes(bucket, width, config.speculation.max_drafts, size * 4 * hidden) for bucket in buckets.all
    )


def longest_context(config: EngineConfig, model: ModelConfig) -> int:
    """Positions of one sequence, drafts ahead of it included."""
    longest = min(config.max_context or model.max_context, model.max_context)
    return longest + 2 * config.speculation.max_drafts


def _kept_bytes(bucket: Bucket, table_width: int, max_drafts: int, state_bytes: int) -> int:
    """Of one bucket: inputs, outputs, and the states of three layers and of the last, for a draft model."""
    return bucket.num_rows * (96 + state_bytes) + bucket.num_sequences * (4 * table_width + 16 * max_drafts + 128)
