"""The capacity plan against the published numbers (model-spec), the engine's own sums, and real checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fp8_checkpoint import BLOCK, CHANNEL
from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.shapes import SHAPES
from cluster import capacity_report
from cluster.capacity import CapacityPlan, CapacityRequest, DoesNotFit, activation_bytes, plan
from cluster.draft_share import DraftShare
from cluster.weight_sums import Part
from engine.config import EngineConfig, KVPrecision, Precision
from engine.graphs.sizes import graph_bytes
from engine.memory import OutOfMemory, kv_blocks, weight_bytes
from model.config import ModelConfig
from model.kv_cache import KVCache, kv_bytes_per_block
from model.safetensors_files import SafetensorsFiles
from router.placement import Placement
from tests.oracle.fp8_checkpoint import write_fp8
from tests.oracle.peak_of_tensors import PeakOfTensors

if TYPE_CHECKING:
    from tests.oracle.tiny_models import TinyModel

GB, GIB, MIB = 10**9, 2**30, 2**20
H20 = 96 * GB
DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}
TINY = tuple("ABCDEFGH")


def flash(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(SHAPES["flash"] | changes)


def planned(model: ModelConfig, **request: Any) -> CapacityPlan:
    return plan(model, CapacityRequest(**{"num_ranks": 1, **request}))


# The published numbers, model-spec §1 and §4


def test_parameters_and_tensors_of_the_published_model() -> None:
    whole = planned(flash(), num_ranks=8).checkpoint
    assert whole.num_parameters == 102_889_705_216
    assert whole.num_tensors == 24_161
    assert whole.stored_bytes == 2 * 102_889_697_280 + 4 * 7_936


def test_the_mtp_layer_adds_what_the_base_model_has_more() -> None:
    base, chat = planned(flash(num_nextn_predict_layers=1)), planned(flash())
    assert base.checkpoint.num_parameters - chat.checkpoint.num_parameters == 3_306_181_120
    assert base.checkpoint.num_tensors - chat.checkpoint.num_tensors == 783
    experts = [made.ranks[0].weights[Part.ROUTED_EXPERTS].num_parameters for made in (base, chat)]
    assert base.ranks[0].weights[Part.MTP].num_parameters + experts[0] - experts[1] == 3_306_181_120


@pytest.mark.parametrize(
    ("quantization", "scale_itemsize", "size_gb", "expert_bytes"),
    [
        (BLOCK, 4, 104.23, 12 * MIB + 4 * 3 * 8 * 32),
        (CHANNEL, 2, 104.31, 12 * MIB + 2 * (1024 + 1024 + 4096)),
        (CHANNEL, 4, 104.41, 12 * MIB + 4 * (1024 + 1024 + 4096)),
    ],
)
def test_fp8_checkpoints_have_the_published_size(
    quantization: dict[str, Any], scale_itemsize: int, size_gb: float, expert_bytes: int
) -> None:
    made = planned(flash(quantization_config=quantization), num_ranks=8, channel_scale_itemsize=scale_itemsize)
    assert round(made.checkpoint.stored_bytes / GB, 2) == size_gb
    assert made.expert.stored_bytes == expert_bytes
    assert made.checkpoint.num_parameters == 102_889_705_216


def test_an_expert_takes_24_mib_in_memory_in_either_checkpoint() -> None:
    assert planned(flash()).expert.stored_bytes == 24 * MIB
    assert planned(flash()).expert.loaded_bytes == 24 * MIB
    assert planned(flash(quantization_config=BLOCK)).expert.loaded_bytes == 24 * MIB
    assert planned(flash(), precision=Precision.FP32).expert.loaded_bytes == 48 * MIB


def test_kv_of_the_published_model() -> None:
    made = planned(flash(max_position_embeddings=131_072), kv_bytes=20 * GIB, block_size=64)
    assert made.kv_bytes_per_token == 64 * 1024
    assert made.kv_bytes_per_token * made.max_context == 8 * GIB
    assert made.kv_tokens(made.ranks[0]) == 20 * GIB // (64 * 1024)
    assert made.full_sequences(made.ranks[0]) == 2


def test_an_fp8_cache_holds_twice_the_tokens() -> None:
    """32 KiB a token, 4 GiB for 128K: half of model-spec §1's bf16."""
    sizes = {"kv_bytes": 20 * GIB, "block_size": 64, "kv_precision": KVPrecision.FP8}
    made = planned(flash(max_position_embeddings=131_072), **sizes)
    assert made.kv_bytes_per_token * made.max_context == 4 * GIB
    assert made.kv_tokens(made.ranks[0]) == 2 * 20 * GIB // (64 * 1024)
    assert "32.00 KiB a token in float8_e4m3" in capacity_report.render(made)
    assert capacity_report.as_dict(made)["kv"]["dtype"] == "float8_e4m3"


def test_eight_ranks_hold_one_expert_group_each() -> None:
    for rank in planned(flash(), num_ranks=8).ranks:
        assert rank.experts == tuple(range(32 * rank.rank, 32 * rank.rank + 32))
        assert rank.weights[Part.ROUTED_EXPERTS].loaded_bytes == 31 * 32 * 24 * MIB


# Against the engine and real files


@settings(deadline=None)
@given(
    name=st.sampled_from(TINY),
    num_ranks=st.integers(1, 20),
    precision=st.sampled_from(Precision),
    is_tied=st.booleans(),
)
def test_ranks_together_hold_every_expert_once_and_what_the_engine_says(
    name: str, num_ranks: int, precision: Precision, is_tied: bool
) -> None:
    model = ModelConfig.from_dict(SHAPES[name] | {"tie_word_embeddings": is_tied})
    made = planned(model, num_ranks=num_ranks, precision=precision)
    assert sorted(expert for rank in made.ranks for expert in rank.experts) == list(range(model.num_experts))
    routed = sum(rank.weights[Part.ROUTED_EXPERTS].num_parameters for rank in made.ranks)
    shared = made.ranks[0].total.num_parameters - made.ranks[0].weights[Part.ROUTED_EXPERTS].num_parameters
    assert routed + shared == made.checkpoint.num_parameters
    for rank in made.ranks:
        assert rank.experts == Placement.even(model.num_experts, num_ranks).local_experts(rank.rank)
        assert rank.total.loaded_bytes == weight_bytes(model, DTYPES[precision], rank.experts)


@settings(deadline=None)
@given(
    block_size=st.sampled_from([1, 16, 64]),
    max_sequences=st.integers(1, 300),
    max_context=st.none() | st.integers(1, 2048),
    kv_bytes=st.none() | st.integers(0, 10**8),
    kv_fraction=st.floats(0.01, 1.0),
    kv_precision=st.sampled_from(KVPrecision),
    free_bytes=st.integers(0, 10**9),
    num_ranks=st.integers(1, 4),
)
def test_kv_blocks_are_the_engines(num_ranks: int, free_bytes: int, **fields: Any) -> None:
    model = ModelConfig.from_dict(SHAPES["B"])
    engine = EngineConfig(model_dir="", device="cuda", group_size=num_ranks, **fields)
    weights = weight_bytes(model, torch.bfloat16, Placement.even(16, num_ranks).local_experts(0))
    request = CapacityRequest.from_engine(engine, model, weights + free_bytes)
    try:
        left = max(free_bytes - graph_bytes(engine, model), 0)
        kv_dtype = torch.float8_e4m3fn if engine.kv_precision is KVPrecision.FP8 else torch.bfloat16
        num_blocks = kv_blocks(engine, model, kv_dtype, left)
    except OutOfMemory:
        with pytest.raises(DoesNotFit):
            plan(model, request)
        return
    try:
        first = plan(model, request).ranks[0]
    except DoesNotFit:  # the engine does not look at activations
        kv_size = num_blocks * kv_bytes_per_block(model, engine.block_size, kv_dtype)
        assert kv_size + activation_bytes(model, request, 16 // num_ranks) > left
        return
    assert first.kv_blocks == num_blocks


def test_a_request_takes_each_field_of_the_engines_configuration() -> None:
    engine = EngineConfig(
        model_dir="",
        device="cuda",
        precision=Precision.FP32,
        group_size=3,
        kv_bytes=5,
        kv_fraction=0.25,
        kv_precision=KVPrecision.FP8,
        block_size=7,
        max_rows_per_step=11,
        max_sequences=13,
        max_context=17,
    )
    model = ModelConfig.from_dict(SHAPES["B"])
    request = CapacityRequest.from_engine(engine, model, 19, DraftShare(num_parameters=23))
    untouched = {"channel_scale_itemsize"}
    for field in dataclasses.fields(CapacityRequest):
        assert (getattr(request, field.name) != field.default) is (field.name not in untouched), field.name
    for name in (
        "kv_bytes",
        "kv_fraction",
        "kv_precision",
        "block_size",
        "max_rows_per_step",
        "max_sequences",
        "max_context",
    ):
        assert getattr(request, name) == getattr(engine, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("name", "changes"), [("A", {}), ("C", {}), ("B", {"tie_word_embeddings": True})])
def test_stored_bytes_are_those_of_a_real_checkpoint(
    tmp_path: Path, name: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    folder = write_checkpoint(tmp_path / name, SHAPES[name] | changes, dtype)
    made = planned(ModelConfig.from_dir(folder)).checkpoint
    with SafetensorsFiles(folder) as files:
        assert made.num_tensors == len(files.tensors)
        assert made.stored_bytes == sum(tensor.num_bytes for tensor in files.tensors.values())


@pytest.mark.parametrize("quantization", [BLOCK, CHANNEL], ids=["block", "channel"])
def test_stored_bytes_are_those_of_a_real_fp8_checkpoint(tmp_path: Path, quantization: dict[str, Any]) -> None:
    from tests.oracle.tiny_models import tiny_model

    source = tiny_model(SHAPES["F"] | {"num_nextn_predict_layers": 1}, tmp_path / "plain")
    made, stored = write_fp8(source, tmp_path / "fp8", quantization)
    itemsize = {tensor.element_size() for name, tensor in stored.items() if name.endswith("weight_scale")} or {4}
    model = made.config.model_copy(update={"torch_dtype": "bfloat16"})  # as write_fp8 stores what is not FP8
    sums = planned(model, channel_scale_itemsize=itemsize.pop()).checkpoint
    assert sums.stored_bytes == sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loaded_bytes_are_those_of_a_real_model(tiny: Callable[[str], TinyModel], dtype: torch.dtype) -> None:
    source = tiny("G")  # every size is a multiple of 64, so that the native layout pads nothing
    precision = Precision.BF16 if dtype is torch.bfloat16 else Precision.FP32
    made = planned(source.config, precision=precision)
    tensors = {t.data_ptr(): t.nbytes for t in tensors_below(source.load(dtype))}
    rotary_table = 4 * source.config.max_context * source.config.rope.rotary_dim
    load_counters = 8 * source.config.num_experts
    assert sum(tensors.values()) - rotary_table - load_counters == made.ranks[0].total.loaded_bytes


def test_a_whole_context_takes_its_last_block_whole() -> None:
    model = ModelConfig.from_dict(SHAPES["A"])
    per_block = kv_bytes_per_block(model, 16, torch.bfloat16)
    made = planned(model, max_context=17, kv_bytes=7 * per_block)
    assert made.full_sequences(made.ranks[0]) == 3


@pytest.mark.parametrize(("kept", "dtype"), [("auto", torch.bfloat16), ("float8_e4m3", torch.float8_e4m3fn)])
def test_kv_bytes_are_those_of_a_real_cache(kept: str, dtype: torch.dtype) -> None:
    model = ModelConfig.from_dict(SHAPES["B"])
    made = planned(model, kv_bytes=3 * MIB, block_size=8, kv_precision=KVPrecision(kept))
    cache = KVCache(model, made.ranks[0].kv_blocks, 8, dtype, torch.device("cpu"))
    assert cache.num_bytes == made.ranks[0].kv_bytes


def tensors_below(value: object) -> list[torch.Tensor]:
    """All tensors that an object holds, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_below(item)]
    if type(value).__module__.split(".")[0] not in {"model", "router", "experts", "kernels"}:
        return []
    names = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())} | set(
        getattr(value, "__dict__", {})
    )
    return [tensor for name in sorted(names) for tensor in tensors_below(getattr(value, name, None))]


# Activations


def test_activations_of_a_step_by_hand() -> None:
    model = ModelConfig.from_dict(SHAPES["A"])  # H 64, 4/2 heads of 16, dense 128, I 32, E 8, K 2, V 512, rotary 8
    request = CapacityRequest(num_ranks=4, max_rows_per_step=10)
    rotary, kept = 4 * 2048 * 8, 2 * 2 * 10 * 64
    assert activation_bytes(model, request, 2) == rotary + kept + 2 * 4 * 10 * 512  # logits are the largest
    narrow = model.model_copy(update={"vocab_size": 1})
    received = 4 * 10 * 2
    exchange = 2 * ((20 + 2 * received) * 64 + received * 32) + 4 * 10 * 8
    assert activation_bytes(narrow, request, 2) == rotary + kept + exchange
    assert activation_bytes(narrow, request, 1) < activation_bytes(narrow, request, 2)


@pytest.mark.parametrize("changes", [{}, {"vocab_size": 64}], ids=["logits largest", "exchange largest"])
def test_a_real_step_stays_below_the_bound(tmp_path: Path, changes: dict[str, Any]) -> None:
    from tests.oracle.tiny_models import kv_cache, ragged_batch, tiny_model

    source = tiny_model(SHAPES["B"] | changes, tmp_path / "model", dtype=torch.bfloat16)
    model, kv = source.load(torch.bfloat16), kv_cache(source.load(torch.bfloat16), 64, torch.bfloat16)
    num_rows = 256
    batch = ragged_batch([([1] * num_rows, 0, range(64))])
    with PeakOfTensors() as measured:
        logits = model.forward(batch, kv).logits
        logits.log_softmax(-1)
    request = CapacityRequest(num_ranks=1, max_rows_per_step=num_rows)
    rotary_table = 4 * source.config.max_context * source.config.rope.rotary_dim  # made when the model is loaded
    bound = activation_bytes(source.config, request, source.config.num_experts) - rotary_table
    assert len(logits) == num_rows
    assert bound / 2 < measured.peak_bytes <= bound


# Refusals


def test_too_little_memory_is_refused_with_the_number_of_ranks_that_would_do() -> None:
    with pytest.raises(DoesNotFit, match=r"rank 0 needs 1\d\d\.\d\d GiB .* 89\.41 GiB are available") as refused:
        planned(flash(), num_ranks=2, memory_bytes=H20)
    found = re.search(r"use (\d+) ranks", str(refused.value))
    assert found is not None, refused.value
    assert planned(flash(), num_ranks=int(found[1]), memory_bytes=H20)
    with pytest.raises(DoesNotFit):
        planned(flash(), num_ranks=int(found[1]) - 1, memory_bytes=H20)


@pytest.mark.parametrize(
    ("request_fields", "advice"),
    [
        ({"num_ranks": 8, "kv_bytes": 80 * GIB}, "lower engine.max_rows_per_step or engine.kv_cache_size"),
        ({"num_ranks": 8, "kv_fraction": 1.0}, "lower engine.max_rows_per_step or engine.kv_fraction"),
        ({"num_ranks": 4, "precision": Precision.FP32}, "set model.dtype to bfloat16"),
        ({"num_ranks": 256, "memory_bytes": 5 * GIB}, "devices with more memory are needed"),
        ({"num_ranks": 8, "kv_bytes": 100}, "engine.kv_cache_size: 100 bytes hold no block; one needs 1048576"),
        ({"num_ranks": 8, "kv_bytes": 100, "memory_bytes": None}, "engine.kv_cache_size: 100 bytes hold no block"),
    ],
)
def test_a_refusal_says_what_to_change(request_fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(DoesNotFit, match=re.escape(advice)):
        planned(flash(), **{"memory_bytes": H20, **request_fields})


def test_unknown_memory_refuses_nothing() -> None:
    assert planned(flash(), precision=Precision.FP32).ranks[0].kv_blocks == 256 * (32_768 // 16)


def test_ranks_beyond_the_experts_hold_none() -> None:
    made = planned(ModelConfig.from_dict(SHAPES["A"]), num_ranks=10)
    assert [len(rank.experts) for rank in made.ranks] == [1] * 8 + [0] * 2
    assert "none (0)" in capacity_report.render(made)


# What people and programs read


def test_the_dictionary_is_json_and_adds_up() -> None:
    made = planned(flash(quantization_config=BLOCK), num_ranks=7, memory_bytes=H20)
    document = capacity_report.as_dict(made)
    assert json.loads(json.dumps(document)) == document
    assert [expert for rank in document["ranks"] for expert in rank["experts"]] == list(range(256))
    for rank in document["ranks"]:
        for size in ("stored_bytes", "loaded_bytes"):
            assert rank[size] == sum(part[size] for part in rank["weights"].values())
        assert rank["used_bytes"] == rank["loaded_bytes"] + rank["activation_bytes"] + rank["kv_bytes"] <= H20
        assert rank["kv_bytes"] == rank["kv_blocks"] * document["kv"]["bytes_per_block"]
    assert document["kv"]["tokens"] == sum(rank["kv_tokens"] for rank in document["ranks"])


def test_the_text_says_who_holds_what() -> None:
    text = capacity_report.render(planned(flash(quantization_config=BLOCK), num_ranks=8, memory_bytes=H20))
    assert "102,889,705,216 parameters in 24,161 tensors, 104.23 GB (FP8 with scales per block)" in text
    assert re.search(r"^7 +224-255 \(32\) +7 +28\.96 GiB .* of 89\.41 GiB$", text, re.MULTILINE)
    assert "64.00 KiB a token in bfloat16" in text and "dequantised to bfloat16" in text
    assert "not known" not in text
    kept = capacity_report.render(planned(flash(quantization_config=BLOCK), num_ranks=8, keeps_fp8=True))
    assert "dequantised" not in kept
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_text_warns_of_a_context_that_fits_nowhere_and_of_unknown_memory() -> None:
    text = capacity_report.render(planned(flash(), num_ranks=8, kv_bytes=GIB))
    assert "No rank can run a sequence of 32,768 tokens" in text
    assert "whether all this fits was not checked" in text


def test_planning_needs_neither_torch_nor_ray() -> None:
    code = "import sys, cluster.capacity_report; print(*{name.split('.')[0] for name in sys.modules})"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "grpc", "numpy"} & set(done.stdout.split())
