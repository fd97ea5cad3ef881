"""The EAGLE3 head against its formulas, in both layouts and with every switch; what a loader must refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.paged_attention import allocate_kv_layer
from model.eagle3 import Eagle3Head, load_eagle3
from model.eagle3_config import Eagle3Config
from model.errors import CheckpointError
from tests.oracle.comparison import random_ids, relative_error
from tests.oracle.eagle3_heads import flat_config, nested_config, random_weights, write_head
from tests.oracle.eagle3_reference import Eagle3Reference
from tests.oracle.tiny_models import BLOCK_SIZE, CPU, TinyModel, block_table, kv_cache, ragged_batch

CHANGES: list[dict[str, Any]] = [
    {},
    {"norm_before_fc": True},
    {"fc_norm": True},
    {"norm_output": True},
    {"norm_before_residual": True},
    {"attention_bias": True},
    {"norm_before_fc": True, "norm_output": True, "norm_before_residual": True, "head_dim": 24},
    {"draft_vocab_size": None, "tie_word_embeddings": True, "rope_theta": 50000},
]


def load(folder: Path, world: TinyModel) -> Eagle3Head:
    return load_eagle3(folder, world.config, world.tensors["model.word_embeddings.weight"], torch.float32, CPU)


@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "+".join(changes) or "plain")
def test_a_chain_of_drafts_follows_the_formulas(
    tiny: Callable[[str], TinyModel], tmp_path: Path, changes: dict[str, Any], layout: str
) -> None:
    world = tiny("B")
    raw = flat_config(world.config, **changes)
    config = Eagle3Config.from_dict(raw, world.config)
    weights = random_weights(config, world.config)
    folder = write_head(
        tmp_path,
        raw if layout == "flat" else nested_config(raw),
        weights,
        "midlayer." if layout == "flat" else "layers.0.",
    )
    head, model = load(folder, world), world.load()
    reference = Eagle3Reference(config, weights, world.tensors["model.word_embeddings.weight"])

    ids = random_ids(22, world.config.vocab_size)
    output = model.forward(ragged_batch([(ids[:-1], 0, block_table(21))]), kv_cache(model), head.capture_layers)
    assert output.captured is not None
    expected = reference.fuse(output.captured)
    assert relative_error(head.first_states(output), expected) < 1e-5

    # Two chunks, then a further step from the head's own states, as a batch would run them.
    kv = allocate_kv_layer(8, BLOCK_SIZE, head.num_kv_heads, head.head_dim, torch.float32, CPU)
    states, shifted = head.first_states(output), ids[1:]
    parts = [
        head.forward(states[a:b].clone(), ragged_batch([(shifted[a:b], a, block_table(22))]), kv)
        for a, b in ((0, 9), (9, 21))
    ]
    first = reference.forward(expected, torch.tensor(shifted))
    assert relative_error(torch.cat(parts), first) < 1e-5
    assert relative_error(head.logits(parts[1]), reference.logits(first[9:])) < 1e-5
    drafted = 3
    second = head.forward(parts[1][-1:].clone(), ragged_batch([([drafted], 21, block_table(22))]), kv)
    longer = reference.forward(torch.cat([expected, first[-1:]]), torch.tensor([*shifted, drafted]))
    assert relative_error(second, longer[-1:]) < 1e-5


def test_both_conventions_of_captured_layers_mean_the_same_states(tiny: Callable[[str], TinyModel]) -> None:
    target = tiny("B").config
    raw = flat_config(target)
    assert Eagle3Config.from_dict(raw, target).capture_layers == (1, 2, target.num_hidden_layers - 1)
    assert Eagle3Config.from_dict(nested_config(raw), target).capture_layers == (1, 2, target.num_hidden_layers - 1)


def test_the_default_layers_are_the_second_the_middle_and_the_last_but_two(tiny: Callable[[str], TinyModel]) -> None:
    target = tiny("B").config.model_copy(update={"num_hidden_layers": 32})
    raw = flat_config(target)
    del raw["eagle_config"]
    assert Eagle3Config.from_dict(raw, target).capture_layers == (2, 16, 29)
    with pytest.raises(CheckpointError, match=r"eagle_aux_hidden_state_layer_ids: missing.*7 layers"):
        Eagle3Config.from_dict(raw, target.model_copy(update={"num_hidden_layers": 6}))


def test_a_row_does_not_know_its_neighbours(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    world = tiny("B")
    raw = flat_config(world.config)
    weights = random_weights(Eagle3Config.from_dict(raw, world.config), world.config)
    head = load(write_head(tmp_path, raw, weights), world)
    states = torch.randn(12, world.config.hidden_size, generator=torch.Generator().manual_seed(1))
    ids = random_ids(12, world.config.vocab_size)
    whole = allocate_kv_layer(8, BLOCK_SIZE, head.num_kv_heads, head.head_dim, torch.float32, CPU)
    single = allocate_kv_layer(8, BLOCK_SIZE, head.num_kv_heads, head.head_dim, torch.float32, CPU)
    together = head.forward(states.clone(), ragged_batch([(ids, 0, block_table(12))]), whole)
    for i in range(12):
        alone = head.forward(states[i : i + 1].clone(), ragged_batch([(ids[i : i + 1], i, block_table(12))]), single)
        assert torch.equal(alone, together[i : i + 1])
    nothing = head.forward(states[:0], ragged_batch([]), whole)
    assert nothing.shape == (0, world.config.hidden_size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"norm_before_fc": True, "fc_norm": True}, "fc_norm: goes not together"),
        ({"draft_vocab_size": 10**6}, "draft_vocab_size: 1000000 is more"),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"]}, "sliding_window: 8 is shorter"),
        ({"target_hidden_size": 3}, "target_hidden_size: 3"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 99]}}, "eagle_aux_hidden_state_layer_ids"),
        ({"num_aux_hidden_states": 5}, "num_aux_hidden_states: 5"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 is no divisor"),
        ({"norm_output": "yes"}, "norm_output"),
    ],
)
def test_what_a_head_says_of_itself_is_checked(
    tiny: Callable[[str], TinyModel], change: dict[str, Any], message: str
) -> None:
    target = tiny("B").config
    with pytest.raises(CheckpointError, match=message):
        Eagle3Config.from_dict(flat_config(target, **change), target)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("fc.weight", None, "fc.weight: missing"),
        ("fc.weight", torch.zeros(3, 3), r"fc.weight: shape \[3, 3\]"),
        ("input_norm.weight", torch.ones(8), "input_norm.weight: not a tensor of an EAGLE3 head"),
        ("d2t", None, "d2t: missing"),
        ("d2t", torch.full((60,), 10**6), "d2t: leads to ids outside"),
        ("d2t", torch.zeros(60), "d2t: dtype"),
        ("t2d", torch.zeros(512, dtype=torch.bool), "t2d: names other tokens"),
        ("layers.0.hidden_norm.weight", torch.ones(64), "stands for the same weight"),
    ],
)
def test_what_is_wrong_with_the_weights_is_named(
    tiny: Callable[[str], TinyModel], tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    world = tiny("B")
    raw = flat_config(world.config)
    weights = random_weights(Eagle3Config.from_dict(raw, world.config), world.config)
    if tensor is None:
        del weights[name]
    else:
        weights[name] = tensor if name != "t2d" else torch.zeros(world.config.vocab_size, dtype=torch.bool)
    with pytest.raises(CheckpointError, match=message):
        load(write_head(tmp_path, raw, weights), world)
