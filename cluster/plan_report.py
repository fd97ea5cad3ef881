"""A capacity plan as tables for people, and as a dictionary for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from cluster.capacity import readable
from cluster.roofline import EXCHANGE_S, LINK_SHARE, MEMORY_SHARE, Roofline, StepCost, distinct_experts
from cluster.weight_sums import Part, Weights
from model.quantization import BlockFp8

_KV_FORMATS = {"bfloat16": "bf16", "float8_e4m3": "fp8"}


def as_dict(roofline: Roofline, context: int, batches: Sequence[int], max_rows: int) -> dict[str, Any]:
    """Everything in bytes, counts and seconds; values are those of JSON."""
    plan, model = roofline.plan, roofline.plan.model
    first = plan.ranks[0]
    return {
        "model": {
            "parameters": plan.checkpoint.num_parameters,
            "active_parameters": active_parameters(roofline),
            "stored_bytes": plan.checkpoint.stored_bytes,
            "max_context": model.max_context,
        },
        "gpu": {
            "name": roofline.device.name,
            "memory_bytes": roofline.device.memory_bytes,
            "usable_bytes": plan.request.memory_bytes,
        },
        "ranks": roofline.num_ranks,
        "context": context,
        "weights": {"format": _weight_format(roofline), "parts": {p.name.lower(): _sums(w) for p, w in _parts(first)}},
        "rank": {
            "weight_bytes": first.total.loaded_bytes,
            "activation_bytes": first.activation_bytes,
            "kv_bytes": first.kv_bytes,
            "free_bytes": _free(roofline),
        },
        "kv": {
            "dtype": plan.request.kv_dtype,
            "bytes_per_token": plan.kv_bytes_per_token,
            "tokens_per_rank": plan.kv_tokens(first),
            "sequences_per_rank": plan.full_sequences(first),
            "tokens": sum(map(plan.kv_tokens, plan.ranks)),
            "sequences": sum(map(plan.full_sequences, plan.ranks)),
        },
        "decode": [_decode_dict(roofline, batch, context) for batch in batches],
        "prefill": _prefill_dict(roofline, context, max_rows),
        "all_to_all": {
            "dispatch_bytes_per_copy": roofline.dispatch_bytes_per_copy,
            "combine_bytes_per_copy": roofline.combine_bytes_per_copy,
            "copies_per_token_and_layer": model.num_experts_per_tok,
            "layers": model.num_moe_layers,
            "bytes_per_token": roofline.exchange_bytes_per_token,
            "share_between_ranks": (roofline.num_ranks - 1) / roofline.num_ranks,
        },
    }


def render(roofline: Roofline, context: int, batches: Sequence[int], max_rows: int) -> RenderableType:
    """Model, memory, KV cache, rates, all-to-all, and what all that rests on."""
    plan, model, device = roofline.plan, roofline.plan.model, roofline.device
    whole = plan.checkpoint
    head = (
        f"model    {whole.num_parameters:,} parameters, {active_parameters(roofline):,} of them active for a token; "
        f"{whole.stored_bytes / 1e9:,.2f} GB in the checkpoint\n"
        f"group    {roofline.num_ranks} ranks on {device.title}, weights in {_weight_format(roofline)}, "
        f"{model.num_experts // roofline.num_ranks} of {model.num_experts} experts of each layer on a rank\n"
    )
    return Group(
        head,
        _memory_table(roofline),
        "\n" + _kv_text(roofline, context) + "\n",
        f"decode at {context:,} tokens: rows and tokens/s of the group, experts of a layer and bytes read by a rank",
        _decode_table(roofline, context, batches),
        "\n" + _prefill_text(roofline, context, max_rows),
        _exchange_text(roofline) + "\n",
        _assumptions(roofline),
    )


def active_parameters(roofline: Roofline) -> int:
    """Those that one token meets: everything but the experts not chosen (and an MTP layer, which only drafts)."""
    plan, model = roofline.plan, roofline.plan.model
    replicated = sum(
        weights.num_parameters
        for part, weights in plan.ranks[0].weights.items()
        if part not in (Part.ROUTED_EXPERTS, Part.MTP, Part.DRAFT)
    )
    # A router's bias chooses and computes nothing; the published count takes it in all the same.
    return replicated + model.num_experts_per_tok * plan.expert.num_parameters * model.num_moe_layers


def _parts(rank: Any) -> list[tuple[Part, Weights]]:
    return list(rank.weights.items())


def _sums(weights: Weights) -> dict[str, int]:
    return {"parameters": weights.num_parameters, "bytes": weights.loaded_bytes}


def _free(roofline: Roofline) -> int:
    return roofline.device.memory_bytes - roofline.plan.ranks[0].used_bytes


def _decode_dict(roofline: Roofline, batch: int, context: int) -> dict[str, Any]:
    cost, plan, model = roofline.decode(batch, context), roofline.plan, roofline.plan.model
    rows = batch * roofline.num_ranks
    return {
        "batch_per_rank": batch,
        "rows": rows,
        "experts_per_layer": distinct_experts(model.num_experts, model.num_experts_per_tok, rows),
        "weight_bytes": cost.weight_bytes,
        "kv_bytes": cost.kv_bytes,
        **_times(cost),
        "tokens_per_s_each": 1 / cost.step_s,
        "tokens_per_s": rows / cost.step_s,
        "fits": batch <= plan.full_sequences(plan.ranks[0]) and batch <= plan.request.max_sequences,
    }


def _prefill_dict(roofline: Roofline, context: int, max_rows: int) -> dict[str, Any]:
    cost = roofline.prefill(max_rows, context)
    rate = max_rows / cost.step_s
    return {
        "rows_per_step": max_rows,
        **_times(cost),
        "tokens_per_s": rate * roofline.num_ranks,
        "first_token_s": context / rate,
    }


def _times(cost: StepCost) -> dict[str, Any]:
    return {
        "memory_s": cost.memory_s,
        "compute_s": cost.compute_s,
        "all_to_all_s": cost.exchange_s,
        "step_s": cost.step_s,
        "bound": cost.bound,
    }


def _memory_table(roofline: Roofline) -> Table:
    rank, device = roofline.plan.ranks[0], roofline.device
    table = _table("memory of each rank", "parameters", "format", "bytes", f"of {device.memory_bytes / 1e9:,.0f} GB")
    for part, weights in _parts(rank):
        table.add_row(
            part.value,
            f"{weights.num_parameters:,}",
            _format_of(part, roofline),
            *_bytes(weights.loaded_bytes, device.memory_bytes),
        )
    table.add_row(
        "weights together", f"{rank.total.num_parameters:,}", "", *_bytes(rank.total.loaded_bytes, device.memory_bytes)
    )
    table.add_row("activations, at most", "", "", *_bytes(rank.activation_bytes, device.memory_bytes))
    table.add_row(
        "KV cache", "", _KV_FORMATS[roofline.plan.request.kv_dtype], *_bytes(rank.kv_bytes, device.memory_bytes)
    )
    table.add_row("left for CUDA, NCCL, graphs", "", "", *_bytes(_free(roofline), device.memory_bytes))
    return table


def _kv_text(roofline: Roofline, context: int) -> str:
    plan = roofline.plan
    first = plan.ranks[0]
    return (
        f"KV cache  {readable(plan.kv_bytes_per_token)} a token, {readable(plan.kv_bytes_per_token * context)} for "
        f"{context:,} tokens\n"
        f"          a rank holds {plan.kv_tokens(first):,} tokens, {plan.full_sequences(first):,} sequences of "
        f"{context:,}; the group {sum(map(plan.kv_tokens, plan.ranks)):,} tokens, "
        f"{sum(map(plan.full_sequences, plan.ranks)):,} sequences"
    )


def _decode_table(roofline: Roofline, context: int, batches: Sequence[int]) -> Table:
    names = ("sequences\na rank", "\nrows", "\nexperts", "weights\nGB", "KV\nGB", "step\nms", "bound\nby")
    table = _table(*names, "tokens/s\neach", "\ntokens/s", "\nfits")
    table.collapse_padding = True  # 80 columns hold it
    for batch in batches:
        row = _decode_dict(roofline, batch, context)
        table.add_row(
            str(batch),
            str(row["rows"]),
            f"{row['experts_per_layer']:.1f}",
            f"{row['weight_bytes'] / 1e9:,.2f}",
            f"{row['kv_bytes'] / 1e9:,.2f}",
            f"{1e3 * row['step_s']:,.2f}",
            row["bound"],
            f"{row['tokens_per_s_each']:,.0f}",
            f"{row['tokens_per_s']:,.0f}",
            "yes" if row["fits"] else "no",
        )
    return table


def _prefill_text(roofline: Roofline, context: int, max_rows: int) -> str:
    row = _prefill_dict(roofline, context, max_rows)
    return (
        f"prefill   {row['tokens_per_s']:,.0f} tokens/s of the group in steps of {max_rows:,} rows a rank "
        f"({1e3 * row['step_s']:,.1f} ms, bound by {row['bound']}); "
        f"{row['first_token_s']:,.2f} s for one prompt of {context:,}"
    )


def _exchange_text(roofline: Roofline) -> str:
    model = roofline.plan.model
    payload = "fp8" if roofline.has_fp8_payload else "bf16"
    share = (roofline.num_ranks - 1) / roofline.num_ranks
    return (
        f"exchange  {readable(roofline.exchange_bytes_per_token)} a token, both ways: {model.num_moe_layers} layers, "
        f"{model.num_experts_per_tok} copies of {roofline.dispatch_bytes_per_copy:,} B out ({payload}) and "
        f"{roofline.combine_bytes_per_copy:,} B back; {100 * share:.1f}% of it between ranks"
    )


def _assumptions(roofline: Roofline) -> str:
    lines = [
        f"A roofline: {100 * MEMORY_SHARE:.0f}% of the memory's bandwidth, {100 * roofline.device.compute_share:.0f}% "
        f"of the tensor cores, {100 * LINK_SHARE:.0f}% of the links and {1e6 * EXCHANGE_S:.0f} us an all-to-all are "
        "assumed, and even experts; docs/capacity-plan.md has the formulas. Nothing here was measured.",
    ]
    if roofline.plan.model.quantization is not None and not roofline.has_fp8_weights:
        lines.append(
            "The checkpoint's FP8 weights are planned as bf16: dequantised when loaded (engine.kernels: torch)."
        )
    return "\n".join(lines)


def _weight_format(roofline: Roofline) -> str:
    if not roofline.has_fp8_weights:
        return "bf16"
    is_block = isinstance(roofline.plan.model.quantization, BlockFp8)
    return f"FP8 with scales per {'block' if is_block else 'channel'}"


def _format_of(part: Part, roofline: Roofline) -> str:
    if part is Part.ROUTERS:
        return "fp32"
    quantised = (Part.ATTENTION, Part.DENSE_FFN, Part.SHARED_EXPERTS, Part.ROUTED_EXPERTS, Part.MTP)
    return "fp8" if roofline.has_fp8_weights and part in quantised else "bf16"


def _bytes(num_bytes: int, whole: int) -> tuple[str, str]:
    return readable(num_bytes), f"{100 * num_bytes / whole:.1f}%"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    return table
