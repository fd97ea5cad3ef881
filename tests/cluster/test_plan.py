"""`sigmoe plan` against the published arithmetic of the real model (model-spec §1, §4; speculative decoding §5.2)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fp8_checkpoint import BLOCK
from benchmarks.shapes import SHAPES
from cluster.capacity import CapacityRequest
from cluster.capacity import plan as capacity_plan
from cluster.config import ConfigMistake
from cluster.devices import DEVICES
from cluster.plan import RESERVED_BYTES, PlanOptions, planned
from cluster.plan_report import active_parameters
from cluster.roofline import EXCHANGE_S, LINK_SHARE, MEMORY_SHARE, Roofline, distinct_experts
from cluster.weight_sums import Part
from model.config import ModelConfig
from sigmoe.cli import main

GB, GIB, MIB, KIB = 10**9, 2**30, 2**20, 2**10
ROOT = Path(__file__).resolve().parent.parent.parent
ANTANGELMED = str(ROOT / "examples" / "antangelmed")
H20 = DEVICES["h20"]


def roofline(num_ranks: int = 1, *, fp8: bool = True, fp8_payload: bool = False, gpu: str = "h20") -> Roofline:
    """The published model, whether it fits or not."""
    model = ModelConfig.from_dict(SHAPES["flash"] | ({"quantization_config": BLOCK} if fp8 else {}))
    request = CapacityRequest(num_ranks=num_ranks, keeps_fp8=fp8, kv_bytes=GIB)
    return Roofline(
        plan=capacity_plan(model, request),
        device=DEVICES[gpu],
        has_fp8_weights=fp8,
        has_fp8_payload=fp8_payload,
        ranks_per_node=8,
    )


def options(**fields: Any) -> PlanOptions:
    given = {"model": ANTANGELMED, "gpu": "h20", "num_ranks": 8, "context": 32_768, "batches": (1, 16)}
    return PlanOptions(**{**given, **fields})


@pytest.mark.parametrize(
    ("rows", "experts"),
    [(1, 8), (4, 30.5), (8, 57.4), (16, 102), (32, 163.3), (64, 222.4), (128, 251.6), (256, 255.9)],
)
def test_distinct_experts(rows: int, experts: float) -> None:
    assert distinct_experts(256, 8, rows) == pytest.approx(experts, abs=0.05)


def test_parameters_all_and_active() -> None:
    made = roofline()
    assert made.plan.checkpoint.num_parameters == 102_889_705_216
    assert active_parameters(made) == 6_152_277_760
    assert round(made.plan.checkpoint.stored_bytes / GB, 2) == 104.23


def test_an_mtp_layer_is_not_active_in_plain_decoding() -> None:
    model = ModelConfig.from_dict(SHAPES["flash"] | {"num_nextn_predict_layers": 1})
    plan = capacity_plan(model, CapacityRequest(num_ranks=8))
    made = Roofline(plan=plan, device=H20, has_fp8_weights=False, has_fp8_payload=False, ranks_per_node=8)
    assert active_parameters(made) == 6_152_277_760
    assert made.dense_bytes == roofline(8, fp8=False).dense_bytes


@pytest.mark.parametrize("rows", [1, 4, 32, 256])
def test_bytes_of_a_step(rows: int) -> None:
    """W(T) = 3.00 GB + 0.390 GB N(T) with FP8 weights and a bf16 head, and the routers, which it leaves out."""
    made = roofline()
    weights = made.plan.ranks[0].weights
    routers = weights[Part.ROUTERS].loaded_bytes
    assert routers == 4 * 31 * (256 * 4096 + 256)
    cost = made.decode(rows, 1)
    published = 3.00 * GB + 0.390 * GB * distinct_experts(256, 8, rows)
    assert cost.weight_bytes - routers == pytest.approx(published, rel=0.003)
    assert cost.weight_bytes == made.dense_bytes + made.expert_bytes(rows)


def test_kv_and_payload_sizes() -> None:
    made = roofline(8)
    assert made.plan.kv_bytes_per_token == 64 * KIB
    assert made.decode(4, 1000).kv_bytes == 4 * 1000 * 64 * KIB
    assert (made.dispatch_bytes_per_copy, made.combine_bytes_per_copy) == (8 * KIB, 8 * KIB)
    assert roofline(8, fp8_payload=True).dispatch_bytes_per_copy == 4 * KIB + 128
    assert made.exchange_bytes_per_token == 31 * 8 * 16 * KIB


def test_memory_bound_and_compute_bound_steps() -> None:
    """One rank, so no exchange: times from the published sums and the datasheet alone."""
    made = roofline()
    one = made.decode(1, 1)
    assert one.bound == "memory" and one.exchange_s == 0.0
    assert one.step_s == pytest.approx((3.13 + 0.390 * 8) * GB / (4.0e12 * MEMORY_SHARE), rel=0.002)
    many = made.decode(4096, 1)
    products = 2 * 4096 * (6_152_277_760 - 2 * 643_825_664 - 31 * 4096 * 256 - 31 * 256 - 274_432)
    others = 2 * 4096 * (643_825_664 + 31 * (4096 * 256 + 256)) + 4 * 4096 * 32 * 128 * 32
    assert many.bound == "compute"
    assert many.step_s == pytest.approx(products / (296e12 * 0.6) + others / (148e12 * 0.6), rel=1e-9)


def test_more_ranks_read_fewer_experts_each_and_exchange_more() -> None:
    eight = roofline(8)
    assert eight.expert_bytes(64) == pytest.approx(roofline().expert_bytes(64) / 8)
    near = eight.decode(16, 1).exchange_s
    sent = 16 * 31 * 8 * 16 * KIB * 7 / 8
    assert near == pytest.approx(sent / (450 * GB * LINK_SHARE) + 62 * EXCHANGE_S)
    far = roofline(16).decode(16, 1).exchange_s
    assert far == pytest.approx(16 * 31 * 8 * 16 * KIB * 8 / 16 / (50 * GB * LINK_SHARE) + 62 * EXCHANGE_S)


def test_rows_of_a_prompt_share_what_they_read() -> None:
    made = roofline(8)
    cost = made.prefill(2048, 8192)
    assert cost.kv_bytes == 4096 * 64 * KIB
    assert cost.bound == "compute"
    assert cost.compute_s < made.decode(2048, 4096).compute_s, "only last rows are scored"


def test_the_example_on_eight_h20() -> None:
    made = planned(options(has_fp8_weights=False))
    rank = made.plan.ranks[0]
    assert len(rank.experts) == 32
    assert rank.weights[Part.ROUTED_EXPERTS].loaded_bytes == 31 * 32 * 24 * MIB
    assert rank.used_bytes <= 96 * GB - RESERVED_BYTES
    assert made.plan.full_sequences(rank) == rank.kv_blocks // 512
    assert planned(options()).plan == planned(options(has_fp8_weights=True)).plan, "the checkpoint is FP8"
    fp8 = planned(options()).plan.ranks[0]
    assert fp8.weights[Part.ROUTED_EXPERTS].loaded_bytes == 31 * 32 * (12 * MIB + 4 * 3 * 8 * 32)
    assert fp8.kv_blocks > rank.kv_blocks


def test_128k_tokens_in_bf16_and_in_fp8() -> None:
    """Model-spec §1: 8 GiB a sequence in bf16; what the weights leave holds twice as many in FP8."""
    bf16, fp8 = (planned(options(context=131_072, has_fp8_kv=is_fp8)) for is_fp8 in (False, True))
    assert bf16.plan.kv_bytes_per_token * 131_072 == 8 * GIB and fp8.plan.kv_bytes_per_token * 131_072 == 4 * GIB
    for made, per_token in ((bf16, 64 * KIB), (fp8, 32 * KIB)):
        first = made.plan.ranks[0]
        left = 96 * GB - RESERVED_BYTES - first.total.loaded_bytes
        assert first.kv_blocks == int(left * 0.85) // (64 * per_token)
        assert made.decode(2, 131_072).kv_bytes == 2 * 131_072 * per_token
    assert fp8.plan.full_sequences(fp8.plan.ranks[0]) == 15, "and 7 in bf16"


def test_weights_kept_as_fp8_are_what_the_checkpoint_holds() -> None:
    parts = roofline().plan.ranks[0].weights
    for part in (Part.ATTENTION, Part.DENSE_FFN, Part.SHARED_EXPERTS, Part.ROUTED_EXPERTS):
        assert parts[part].loaded_bytes == parts[part].stored_bytes
    assert parts[Part.HEAD].loaded_bytes == 2 * 157_184 * 4096


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpu": "h21"}, "--gpu: 'h21' is not known: h20,"),
        ({"context": 131_073}, "--context: 131,073 is more than the model's 131,072 tokens"),
        ({"num_ranks": 3}, "--ranks: 3 do not share 256 experts evenly: 1, 2, 4,"),
        ({"num_ranks": 512}, "--ranks: 512 do not share"),
        ({"gpu": "a100", "has_fp8_weights": True}, "--weights: fp8 is not for NVIDIA A100"),
    ],
)
def test_wrong_input_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigMistake) as mistake:
        planned(options(**fields))
    assert message in str(mistake.value)


def command(*more: str) -> int:
    return main(["plan", "--model", ANTANGELMED, "--gpu", "h20", "--ranks", "8", *more])


def test_the_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--context", "32k", "--batch", "1,64") == 0
    out = capsys.readouterr().out
    for words in ("102,889,705,216 parameters, 6,152,277,760 of them active", "64.00 KiB a token", "NVIDIA H20 96 GB"):
        assert words in out
    assert "Nothing here was measured" in out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out, "80 columns hold every figure"


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--context", "8192", "--weights", "fp8", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["model"]["active_parameters"] == 6_152_277_760
    assert made["context"] == 8192
    assert made["all_to_all"]["bytes_per_token"] == 31 * 8 * 16 * KIB
    assert [row["batch_per_rank"] for row in made["decode"]] == [1, 4, 16, 32, 64]
    for row in made["decode"]:
        assert row["tokens_per_s"] == pytest.approx(row["rows"] / row["step_s"])
        assert row["fits"] == (row["batch_per_rank"] <= made["kv"]["sequences_per_rank"])
    parts = sum(part["bytes"] for part in made["weights"]["parts"].values())
    assert parts == made["rank"]["weight_bytes"]
    used = parts + made["rank"]["activation_bytes"] + made["rank"]["kv_bytes"] + made["rank"]["free_bytes"]
    assert used == made["gpu"]["memory_bytes"] == 96 * GB
    assert math.isfinite(made["prefill"]["tokens_per_s"])


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--gpu", "h21"), 2, "--gpu: 'h21' is not known"),
        (("--ranks", "1"), 1, "--ranks: with 1, rank 0 needs"),
        (("--context", "1m"), 2, "is not a number of tokens"),
        (("--batch", "0"), 2, "is not a list of numbers"),
        (("--kv-fraction", "2"), 2, "--kv-fraction: 2.0 is not allowed"),
        (("--gpu", "a100", "--kv", "fp8"), 2, "--kv: fp8 is not for NVIDIA A100"),
        (("--ranks", "0"), 2, "--ranks: 0 is not allowed"),
        (("--model", "/nowhere"), 2, "/nowhere"),
    ],
)
def test_the_command_says_what_is_wrong(
    more: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = command(*more)
    except SystemExit as end:  # argparse ends by itself
        found = int(end.code or 0)
    assert (found, message in capsys.readouterr().err) == (code, True)
