"""Which tensors an EAGLE3 head must have, may share with its model, and must not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.eagle3 import Eagle3Head, load_eagle3
from model.eagle3_config import Eagle3Config
from model.errors import CheckpointError
from model.linear import Linear
from tests.oracle.eagle3_heads import EMBEDDING, flat_config, random_weights, write_head
from tests.oracle.tiny_models import CPU, TinyModel

NUM_DRAFTED = 60


@pytest.fixture
def world(tiny: Callable[[str], TinyModel]) -> TinyModel:
    return tiny("B")


def load(
    world: TinyModel,
    folder: Path,
    add: dict[str, Tensor] | None = None,
    drop: tuple[str, ...] = (),
    lm_head: Linear | None = None,
    **changes: Any,
) -> Eagle3Head:
    """A random head, with other tensors or without some."""
    raw = flat_config(world.config, **changes)
    weights = random_weights(Eagle3Config.from_dict(raw, world.config), world.config) | (add or {})
    write_head(folder, raw, {name: tensor for name, tensor in weights.items() if name not in drop})
    return load_eagle3(folder, world.config, world.tensors[EMBEDDING], torch.float32, CPU, lm_head)


def with_token(world: TinyModel, token: int, is_drafted: bool) -> Tensor:
    """The t2d of the random head, with one entry changed."""
    raw = flat_config(world.config)
    table = random_weights(Eagle3Config.from_dict(raw, world.config), world.config)["t2d"]
    table[token] = is_drafted
    return table


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("fc.weight", torch.zeros(3, 3), r"fc.weight: shape \[3, 3\], expected \[128, 384\]"),
        ("midlayer.self_attn.q_proj.weight", torch.zeros(64, 128), r"midlayer.self_attn.q_proj.weight: shape"),
        ("embed_tokens.weight", torch.zeros(512, 64), r"embed_tokens.weight: shape \[512, 64\], expected \[512, 128\]"),
        ("norm.weight", torch.ones(128, dtype=torch.int64), "norm.weight: dtype torch.int64"),
        ("norm.weight", torch.ones(128).to(torch.float8_e4m3fn), "norm.weight: dtype torch.float8"),
        ("input_norm.weight", torch.ones(384), "input_norm.weight: not a tensor of an EAGLE3 head"),
        ("fc_norm.0.weight", torch.ones(128), "fc_norm.0.weight: not a tensor"),
        ("midlayer.self_attn.q_norm.weight", torch.ones(16), "midlayer.self_attn.q_norm.weight: not a tensor"),
        ("midlayer.self_attn.q_proj.bias", torch.ones(64), "midlayer.self_attn.q_proj.bias: not a tensor"),
        ("fc.bias", torch.ones(128), "fc.bias: not a tensor"),
        ("layers.1.hidden_norm.weight", torch.ones(128), "layers.1.hidden_norm.weight: not a tensor"),
        ("layers.0.hidden_norm.weight", torch.ones(128), "stands for the same weight"),
        ("d2t", torch.full((NUM_DRAFTED,), 10**6), "d2t: leads to ids outside the vocabulary of 512"),
        ("d2t", -1 - torch.arange(NUM_DRAFTED), "d2t: leads to ids outside"),
        ("d2t", -torch.arange(NUM_DRAFTED), "d2t: .*one id twice"),
        ("d2t", torch.zeros(NUM_DRAFTED), "d2t: dtype"),
        ("d2t", torch.zeros(NUM_DRAFTED + 1, dtype=torch.int64), "d2t: shape"),
        ("t2d", torch.zeros(512, dtype=torch.bool), "t2d: names other tokens than d2t"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    world: TinyModel, tmp_path: Path, name: str, tensor: Tensor, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(world, tmp_path, add={name: tensor})


@pytest.mark.parametrize(
    "name",
    ["fc.weight", "norm.weight", "lm_head.weight", "layer.hidden_norm.weight", "layer.mlp.up_proj.weight", "d2t"],
)
def test_a_missing_tensor_is_named(world: TinyModel, tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name.replace('layer.', 'midlayer.')}: missing"):
        load(world, tmp_path, drop=(name,), lm_head=Linear.pack(world.tensors["lm_head.weight"]))


def test_switches_bring_their_tensors(world: TinyModel, tmp_path: Path) -> None:
    for name, changes in (
        ("input_norm.weight", {"norm_before_fc": True}),
        ("fc_norm.2.weight", {"fc_norm": True}),
        ("layer.self_attn.o_proj.bias", {"attention_bias": True}),
        ("embed_tokens.weight", {"hidden_size": 80}),
    ):
        load(world, tmp_path / name, **changes)
        with pytest.raises(CheckpointError, match=f"{name.replace('layer.', 'midlayer.')}: missing"):
            load(world, tmp_path / name, drop=(name,), **changes)


def test_t2d_and_d2t_must_name_the_same_tokens(world: TinyModel, tmp_path: Path) -> None:
    head = load(world, tmp_path / "right")
    assert head.target_ids is not None
    drafted = int(head.target_ids[0])
    other = next(token for token in range(512) if token not in head.target_ids.tolist())
    for place, (token, is_drafted) in enumerate(((drafted, False), (other, True))):
        with pytest.raises(CheckpointError, match="t2d: names other tokens"):
            load(world, tmp_path / str(place), add={"t2d": with_token(world, token, is_drafted)})
    load(world, tmp_path / "none", drop=("t2d",))
    with pytest.raises(CheckpointError, match="t2d: leaves tokens out, and there is no d2t"):
        load(world, tmp_path / "whole", add={"t2d": with_token(world, 0, False)}, draft_vocab_size=None)


def test_the_models_embedding_serves_unless_the_head_has_another(world: TinyModel, tmp_path: Path) -> None:
    embedding = world.tensors[EMBEDDING]
    assert load(world, tmp_path / "none").embedding is embedding
    assert load(world, tmp_path / "copy", add={"embed_tokens.weight": embedding}).embedding is embedding
    own = load(world, tmp_path / "own", add={"embed_tokens.weight": embedding * 2}).embedding
    assert torch.equal(own, embedding * 2)


def test_the_models_head_serves_where_the_draft_has_its_whole_vocabulary_and_none_of_its_own(
    world: TinyModel, tmp_path: Path
) -> None:
    shared = Linear.pack(world.tensors["lm_head.weight"])
    drop = ("lm_head.weight",)
    head = load(world, tmp_path / "shared", drop=drop, lm_head=shared, draft_vocab_size=None)
    assert head.lm_head is shared and head.target_ids is None
    assert load(world, tmp_path / "own", lm_head=shared, draft_vocab_size=None).lm_head is not shared
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: missing"):
        load(world, tmp_path / "alone", drop=drop, draft_vocab_size=None)
    identity = torch.zeros(512, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: missing"):
        load(world, tmp_path / "table", {"d2t": identity}, drop, shared, draft_vocab_size=None)


def test_integer_tables_may_be_narrow(world: TinyModel, tmp_path: Path) -> None:
    wide = load(world, tmp_path / "wide").target_ids
    assert wide is not None
    offsets = (wide - torch.arange(NUM_DRAFTED)).to(torch.int32)
    narrow = load(world, tmp_path / "narrow", add={"d2t": offsets}).target_ids
    assert narrow is not None and narrow.dtype == torch.int64 and torch.equal(narrow, wide)
