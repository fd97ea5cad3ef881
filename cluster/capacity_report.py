"""The plan of a group as text for people, and as a dictionary for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cluster.capacity import CapacityPlan, RankPlan, readable
from model.config import ModelConfig
from model.quantization import BlockFp8


def render(plan: CapacityPlan) -> str:
    """Several lines: the model, each rank, what a rank's weights are, the KV cache."""
    sections = (_model_lines(plan), _rank_table(plan), _weight_table(plan.ranks[0]), _kv_lines(plan), _note_lines(plan))
    return "\n\n".join("\n".join(lines) for lines in sections)


def as_dict(plan: CapacityPlan) -> dict[str, Any]:
    """Everything in `render`, in bytes and counts; values are those of JSON."""
    return {
        "model": {
            "parameters": plan.checkpoint.num_parameters,
            "tensors": plan.checkpoint.num_tensors,
            "stored_bytes": plan.checkpoint.stored_bytes,
            "stored_format": _stored_format(plan.model),
            "experts": plan.model.num_experts,
            "expert_groups": plan.model.n_group,
            "expert_stored_bytes": plan.expert.stored_bytes,
            "expert_loaded_bytes": plan.expert.loaded_bytes,
            "max_context": plan.max_context,
        },
        "dtype": plan.request.precision.value,
        "memory_bytes_per_rank": plan.request.memory_bytes,
        "draft_method": plan.request.draft.method.value,
        "kv": {
            "dtype": plan.request.kv_dtype,
            "block_size": plan.request.block_size,
            "bytes_per_token": plan.kv_bytes_per_token,
            "bytes_per_block": plan.kv_bytes_per_block,
            "tokens": sum(plan.kv_tokens(rank) for rank in plan.ranks),
            "full_sequences": sum(plan.full_sequences(rank) for rank in plan.ranks),
        },
        "ranks": [_rank_dict(plan, rank) for rank in plan.ranks],
    }


def _rank_dict(plan: CapacityPlan, rank: RankPlan) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "experts": list(rank.experts),
        "weights": {
            part.name.lower(): {
                "parameters": weights.num_parameters,
                "stored_bytes": weights.stored_bytes,
                "loaded_bytes": weights.loaded_bytes,
            }
            for part, weights in rank.weights.items()
        },
        "stored_bytes": rank.total.stored_bytes,
        "loaded_bytes": rank.total.loaded_bytes,
        "activation_bytes": rank.activation_bytes,
        "kv_blocks": rank.kv_blocks,
        "kv_bytes": rank.kv_bytes,
        "kv_tokens": plan.kv_tokens(rank),
        "full_sequences": plan.full_sequences(rank),
        "used_bytes": rank.used_bytes,
    }


def _model_lines(plan: CapacityPlan) -> Iterator[str]:
    model, whole = plan.model, plan.checkpoint
    yield (
        f"model     {whole.num_parameters:,} parameters in {whole.num_tensors:,} tensors, "
        f"{whole.stored_bytes / 1e9:,.2f} GB ({_stored_format(model)})"
    )
    yield (
        f"experts   {model.num_experts} in {model.n_group} expert groups, in {model.num_moe_layers} of "
        f"{model.num_hidden_layers} layers; one is {readable(plan.expert.stored_bytes)} in the checkpoint, "
        f"{readable(plan.expert.loaded_bytes)} in memory"
    )
    yield f"group     {len(plan.ranks)} ranks, {plan.request.precision.value}"


def _rank_table(plan: CapacityPlan) -> list[str]:
    memory = plan.request.memory_bytes
    per_group = plan.model.num_experts // plan.model.n_group
    rows = [("rank", "experts", "expert groups", "weights", "activations", "KV cache", "used", "of memory")]
    rows += [
        (
            str(rank.rank),
            f"{_spans(rank.experts)} ({len(rank.experts)})",
            _spans(sorted({expert // per_group for expert in rank.experts})),
            readable(rank.total.loaded_bytes),
            readable(rank.activation_bytes),
            readable(rank.kv_bytes),
            readable(rank.used_bytes),
            "unknown" if memory is None else f"{100 * rank.used_bytes / memory:.0f}% of {readable(memory)}",
        )
        for rank in plan.ranks
    ]
    return _columns(rows)


def _weight_table(rank: RankPlan) -> list[str]:
    rows = [(f"weights of rank {rank.rank}", "parameters", "in the checkpoint", "in memory")]
    sums = [(part.value, weights) for part, weights in rank.weights.items()]
    rows += [
        (name, f"{weights.num_parameters:,}", readable(weights.stored_bytes), readable(weights.loaded_bytes))
        for name, weights in [*sums, ("together", rank.total)]
    ]
    return _columns(rows)


def _kv_lines(plan: CapacityPlan) -> Iterator[str]:
    first = plan.ranks[0]
    yield f"drafts    {plan.request.draft.method.value}"
    yield (
        f"KV cache  {readable(plan.kv_bytes_per_token)} a token in {plan.request.kv_dtype}, "
        f"{readable(plan.kv_bytes_per_block)} a block of {plan.request.block_size}, "
        f"{readable(plan.kv_bytes_per_token * plan.max_context)} for a whole context of {plan.max_context:,} tokens"
    )
    yield (
        f"          rank {first.rank} holds {plan.kv_tokens(first):,} tokens, {plan.full_sequences(first):,} whole "
        f"contexts; the group {sum(map(plan.kv_tokens, plan.ranks)):,} tokens, "
        f"{sum(map(plan.full_sequences, plan.ranks)):,} whole contexts"
    )


def _note_lines(plan: CapacityPlan) -> Iterator[str]:
    yield "Activations are an upper bound: it lets every row choose one rank's experts, and be scored."
    if plan.model.quantization is not None and not plan.request.keeps_fp8:
        yield f"FP8 weights are dequantised to {plan.request.precision.value} when they are loaded."
    if min(map(plan.full_sequences, plan.ranks)) == 0:
        yield f"No rank can run a sequence of {plan.max_context:,} tokens: longer ones than its KV cache are refused."
    if plan.request.memory_bytes is None:
        yield "The ranks' memory is not known: whether all this fits was not checked."


def _stored_format(model: ModelConfig) -> str:
    if model.quantization is None:
        return model.torch_dtype
    return "FP8 with scales per block" if isinstance(model.quantization, BlockFp8) else "FP8 with scales per channel"


def _spans(ids: Sequence[int]) -> str:
    """Ascending ids as spans: 0-31, or 0-3,8."""
    starts = [i for i in ids if i - 1 not in ids]
    ends = [i for i in ids if i + 1 not in ids]
    spans = (str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return ",".join(spans) or "none"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Left-aligned text first, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
