"""What is measured of a whole model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import shape_dict

ANTANGELMED = Path(__file__).resolve().parents[2] / "examples" / "antangelmed" / "config.json"
DRAFT_HEAD = ANTANGELMED.parent / "eagle3" / "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    fields: dict[str, Any]  # config.json
    draft_fields: dict[str, Any]  # of an EAGLE3 head
    context: int
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    chunk: int  # rows of a step at most
    repeats: int


def full_plan() -> Plan:
    """AntAngelMed as published."""
    return Plan(
        fields=json.loads(ANTANGELMED.read_text(encoding="utf-8")),
        draft_fields=json.loads(DRAFT_HEAD.read_text(encoding="utf-8")),
        context=1024,
        batches=(1, 8, 32, 64, 128),
        prompts=(2048, 8192, 32768),
        chunk=8192,
        repeats=10,
    )


def tiny_plan() -> Plan:
    """The same road, two layers long."""
    routing = {"num_experts": 4, "n_group": 2, "topk_group": 2, "num_experts_per_tok": 2, "num_hidden_layers": 2}
    quantization = json.loads(ANTANGELMED.read_text(encoding="utf-8"))["quantization_config"]
    fields = shape_dict("B") | routing | {"quantization_config": quantization}
    same = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    head = json.loads(DRAFT_HEAD.read_text(encoding="utf-8")) | {name: fields[name] for name in same}
    head |= {"intermediate_size": 64, "draft_vocab_size": 40}
    head |= {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0]}}
    return Plan(fields=fields, draft_fields=head, context=12, batches=(1, 2), prompts=(4,), chunk=2, repeats=1)
