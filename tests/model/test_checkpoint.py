"""Loading: exactly the local bytes, and every broken checkpoint refused by name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.random_checkpoint import save_tensors, write_checkpoint
from benchmarks.shapes import shape_dict
from model.bailing import BailingModel
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.errors import CheckpointError
from model.moe import MoeLayer
from model.safetensors_files import SafetensorsFiles, read_header
from model.tensor_check import check_tensors
from router.local import LocalDispatcher
from router.placement import Placement
from tests.oracle.comparison import random_ids
from tests.oracle.tiny_models import CPU, TinyModel, run_prompt

Tiny = Callable[[str], TinyModel]
Tensors = dict[str, torch.Tensor]
Break = Callable[[Callable[[Tensors], object]], Path]


def target(placement: Placement, rank: int = 0, dtype: torch.dtype = torch.float32) -> Target:
    return Target(dtype=dtype, device=CPU, placement=placement, rank=rank)


def load(folder: Path) -> BailingModel:
    config = ModelConfig.from_dir(folder)
    place = target(Placement.even(config.num_experts, 1))
    return load_model(folder, config, target=place, dispatcher=LocalDispatcher(config.num_experts))


@pytest.fixture
def broken(tmp_path: Path) -> Break:
    """A folder with shape A whose tensors went through a change."""

    def make(change: Callable[[Tensors], object]) -> Path:
        write_checkpoint(tmp_path, shape_dict("A"), torch.float32)
        tensors = load_file(tmp_path / "model.safetensors")
        change(tensors)
        save_tensors(tmp_path, tensors)
        return tmp_path

    return make


def test_reader_returns_what_the_safetensors_library_returns(tiny: Tiny) -> None:
    theirs = load_file(tiny("A").folder / "model.safetensors")
    with SafetensorsFiles(tiny("A").folder) as files:
        assert files.tensors.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(files.read(name), tensor)
        assert files.bytes_read == sum(tensor.nbytes for tensor in theirs.values())


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_read_their_own_experts_and_nothing_of_others(tiny: Tiny, num_ranks: int) -> None:
    world = tiny("B")
    config = world.config
    placement = Placement.even(config.num_experts, num_ranks)
    expert_bytes = 3 * config.hidden_size * config.moe_intermediate_size * 4 * config.num_moe_layers
    everything = sum(tensor.nbytes for tensor in world.tensors.values())
    for rank in range(num_ranks):
        read: list[tuple[int, int]] = []

        def on_progress(done: int, total: int, seen: list[tuple[int, int]] = read) -> None:
            seen.append((done, total))

        local = LocalDispatcher(config.num_experts)
        place = target(placement, rank)
        load_model(world.folder, config, target=place, dispatcher=local, on_progress=on_progress)
        absent = config.num_experts - len(placement.local_experts(rank))
        assert read[-1] == (everything - absent * expert_bytes,) * 2
        assert [done for done, _ in read] == sorted(done for done, _ in read)


def test_sharded_checkpoint_is_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shape_dict("B"), torch.float32, num_shards=3)
    ids = random_ids(12, 512)
    assert torch.equal(run_prompt(load(tmp_path), ids).logits, run_prompt(tiny("B").load(), ids).logits)


def test_bf16_files_load_as_fp32_and_fp32_files_as_bf16(tiny: Tiny, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shape_dict("B"), torch.bfloat16)
    ids = random_ids(12, 512)
    assert torch.equal(run_prompt(load(tmp_path), ids).logits, run_prompt(tiny("B").load(), ids).logits)
    assert tiny("B").load(torch.bfloat16).embedding.dtype is torch.bfloat16


def test_expert_bias_and_router_stay_fp32_in_a_bf16_model(tiny: Tiny) -> None:
    world = tiny("A")
    ffn = world.load(torch.bfloat16).layers[1].ffn
    assert isinstance(ffn, MoeLayer)
    bias = world.tensors["model.layers.1.mlp.gate.expert_bias"]
    assert torch.equal(ffn.gate.bias, bias)
    assert not torch.equal(bias, bias.bfloat16().float()), "a bias that bf16 holds exactly proves nothing"
    assert ffn.gate.weight.dtype is torch.float32


def test_missing_tensor_is_named(broken: Break) -> None:
    name = "model.layers.2.mlp.experts.5.up_proj.weight"
    with pytest.raises(CheckpointError, match=rf"{name}: missing.*\[32, 64\]"):
        load(broken(lambda tensors: tensors.pop(name)))


def test_unknown_tensor_is_named(broken: Break) -> None:
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.attention\.bias: unknown"):
        load(broken(lambda tensors: tensors.update({"model.layers.0.attention.bias": torch.zeros(3)})))


def test_mtp_tensors_that_the_config_denies_are_explained(
    broken: Break,
) -> None:
    with pytest.raises(CheckpointError, match=r"model\.layers\.4\.enorm\.weight: unknown.*num_nextn_predict_layers 0"):
        load(broken(lambda tensors: tensors.update({"model.layers.4.enorm.weight": torch.zeros(64)})))


def test_wrong_shape_is_named_with_both(broken: Break) -> None:
    name = "model.layers.1.mlp.gate.weight"
    with pytest.raises(CheckpointError, match=rf"{name}: shape \[7, 64\].*\[8, 64\]"):
        load(broken(lambda tensors: tensors.update({name: torch.zeros(7, 64)})))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.norm.weight", torch.float8_e4m3fn),
        ("model.layers.1.mlp.gate.weight", torch.float8_e4m3fn),
        ("lm_head.weight", torch.int8),
        ("lm_head.weight", torch.float8_e5m2),
    ],
)
def test_dtype_that_cannot_be_meant_is_named(broken: Break, name: str, dtype: torch.dtype) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: stored as {dtype}"):
        load(broken(lambda tensors: tensors.update({name: tensors[name].to(dtype)})))


def test_fp8_weight_needs_a_quantization_config(broken: Break) -> None:
    name = "model.layers.1.attention.dense.weight"
    with pytest.raises(CheckpointError, match=f"{name}.*no quantization_config"):
        load(broken(lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)})))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (None, "weight_scale_inv: missing"),
        (torch.ones(2, 1), r"weight_scale_inv: .*\[2, 1\].*\[1, 1\] is needed"),
        (torch.ones(1, 1, dtype=torch.int32), "weight_scale_inv: torch.int32"),
    ],
)
def test_fp8_scales_are_checked(broken: Break, scale: torch.Tensor | None, message: str) -> None:
    name = "model.layers.1.attention.dense.weight"

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        if scale is not None:
            tensors[f"{name}_scale_inv"] = scale

    folder = broken(change)
    fields: dict[str, Any] = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "config.json").write_text(json.dumps(shape_dict("A") | fields))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape_dict("A")))
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load(tmp_path)


def damaged(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    write_checkpoint(folder, shape_dict("A"), torch.float32)
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return folder


def with_header(raw: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"", "cut short"),
        (lambda raw: raw[:5], "cut short"),
        (lambda raw: raw[:100], "cut short"),
        (lambda raw: raw[:-1], "cut short"),
        (lambda raw: b"\xff" * 8 + raw[8:], "not a safetensors file"),
        (lambda raw: raw[:8] + b"}" + raw[9:], "not readable as JSON"),
        (lambda raw: with_header(raw, lambda h: h.update(extra=3)), "extra: header entry is malformed"),
        (
            lambda raw: with_header(raw, lambda h: h["model.norm.weight"].update(shape=[3])),
            "model.norm.weight: 256 bytes",
        ),
        (lambda raw: with_header(raw, lambda h: h["model.norm.weight"].update(dtype="Q4")), "dtype Q4 is not known"),
        (
            lambda raw: with_header(raw, lambda h: h["model.norm.weight"].update(data_offsets=[0, 256])),
            "starts at byte",
        ),
        (
            lambda raw: raw.replace(
                b'"model.layers.2.input_layernorm.weight"', b'"model.layers.1.input_layernorm.weight"'
            ),
            "given twice",
        ),
    ],
)
def test_corrupt_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(damaged(tmp_path, change))
    assert "model.safetensors" in str(caught.value)


def test_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shape_dict("A"), torch.float32)
    with SafetensorsFiles(tmp_path) as files:
        files.read("lm_head.weight")  # from here on the file is open
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"ends inside model\.norm\.weight"):
            files.read("model.norm.weight")


def resharded(folder: Path, edit: Callable[[dict[str, str]], object]) -> Path:
    write_checkpoint(folder, shape_dict("A"), torch.float32, num_shards=2)
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    edit(index["weight_map"])
    index_file.write_text(json.dumps(index))
    return folder


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda names: names.pop("lm_head.weight"), "lm_head.weight: stored in .*says None"),
        (lambda names: names.update({"lm_head.weight": FIRST}), "lm_head.weight: stored in"),
        (lambda names: names.update({"ghost": FIRST}), "ghost: .* promises it in"),
        (lambda names: names.update({"lm_head.weight": "third.safetensors"}), r"third\.safetensors: no such file"),
        (lambda names: names.update({"lm_head.weight": "../x.safetensors"}), "not the name of a file beside"),
        (lambda names: names.clear(), "weight_map is missing or empty"),
    ],
)
def test_index_that_contradicts_its_files_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, str]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(resharded(tmp_path, edit))


def test_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shape_dict("A"), torch.float32, num_shards=2)
    second = load_file(tmp_path / SECOND) | {"model.word_embeddings.weight": torch.zeros(512, 64)}
    save_file(second, tmp_path / SECOND)
    with pytest.raises(CheckpointError, match=r"model\.word_embeddings\.weight: stored twice"):
        load(tmp_path)


def test_placement_of_another_model_is_refused(tiny: Tiny) -> None:
    world = tiny("A")
    with pytest.raises(ValueError, match="placement of 4 experts, the model has 8"):
        load_model(world.folder, world.config, target=target(Placement.even(4, 1)), dispatcher=LocalDispatcher(8))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_header_is_told_or_harmless(tiny: Tiny, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray((tiny("A").folder / "model.safetensors").read_bytes())
    length = 8 + int.from_bytes(raw[:8], "little")
    for position in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3)):
        raw[position] = data.draw(st.integers(0, 255))
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)
    with contextlib.suppress(CheckpointError):
        check_tensors(read_header(file), tiny("A").config)
