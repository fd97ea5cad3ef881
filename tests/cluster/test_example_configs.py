"""The configurations that ship as examples can be used as they are."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import config, settings
from cluster.capacity import CapacityRequest, plan
from cluster.draft_share import DraftShare
from model.config import ModelConfig
from scheduler.request import DraftMethod

ROOT = Path(__file__).resolve().parents[2]
H20_EXAMPLE = ROOT / "examples" / "antangelmed-8xh20.yaml"


@pytest.fixture
def ray_cluster() -> dict[str, Any]:
    tree = yaml.safe_load((ROOT / "ray_config.yaml").read_text())
    assert isinstance(tree, dict)
    return tree


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_examples_are_valid(file: Path) -> None:
    loaded = config.load(file, environment={})
    assert Path(loaded.model.path).is_absolute(), f"{loaded.model.path} does not lie beside {file.name}"


def test_the_h20_example_adds_up() -> None:
    loaded = config.load(H20_EXAMPLE, environment={})
    model = ModelConfig.from_dir(loaded.model.path)
    made = plan(
        model, CapacityRequest.from_engine(settings.engine_config(loaded, model), loaded.cluster.memory_per_rank)
    )
    assert made.checkpoint.num_parameters == 102_889_705_216
    assert round(made.checkpoint.stored_bytes / 1e9, 2) == 104.23
    assert made.max_context == 131_072
    assert [len(rank.experts) for rank in made.ranks] == [32] * 8
    for rank in made.ranks:
        assert rank.used_bytes <= 96 * 10**9
        assert made.full_sequences(rank) >= 4


def test_the_h20_example_counts_its_draft_head() -> None:
    loaded = config.load(H20_EXAMPLE, environment={})
    model = ModelConfig.from_dir(loaded.model.path)
    engine = settings.engine_config(loaded, model)
    draft = DraftShare.of(engine.speculation, model)
    assert draft.method is DraftMethod.EAGLE3
    # fc, QKV over 8,192 inputs, output, FFN, head, norms.
    fc, qkv, out = 4096 * 12288, (4096 + 2 * 1024) * 8192, 4096 * 4096
    assert draft.num_parameters == fc + qkv + out + 3 * 4096 * 14336 + 32000 * 4096 + 4 * 4096
    with_head = plan(model, CapacityRequest.from_engine(engine, loaded.cluster.memory_per_rank, draft))
    without = plan(model, CapacityRequest.from_engine(engine, loaded.cluster.memory_per_rank))
    assert with_head.kv_bytes_per_token - without.kv_bytes_per_token == 4 * 1024
    added = with_head.ranks[0].total.loaded_bytes - without.ranks[0].total.loaded_bytes
    assert added == 2 * draft.num_parameters
    assert with_head.checkpoint == without.checkpoint


def test_the_h20_example_has_yarn_for_128k() -> None:
    rope = ModelConfig.from_dir(H20_EXAMPLE.parent / "antangelmed").rope
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 32_768)
    assert (rope.rope_theta, rope.rotary_dim) == (600_000, 64)


def test_rays_launcher_accepts_the_cluster_file(ray_cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(ray_cluster))
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["max_workers"] == len(ray_cluster["provider"]["worker_ips"])
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert any("[server]" in command for command in prepared[commands])


def test_workers_bring_eight_h20_and_the_head_none(ray_cluster: dict[str, Any]) -> None:
    worker = ray_options(ray_cluster["worker_start_ray_commands"][-1])
    assert worker["--num-gpus"] == "8"
    assert json.loads(worker["--resources"]) == {"H20": 8}
    assert worker["--address"] == "$RAY_HEAD_IP:6379"
    head = ray_options(ray_cluster["head_start_ray_commands"][-1])
    assert head["--num-gpus"] == "0" and head["--port"] == "6379"


def ray_options(command: str) -> dict[str, str]:
    """Of a `ray start`, each checked to be one that Ray knows."""
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    given = [word for word in shlex.split(command.partition("ray start")[2])]
    options = {name: value for name, _, value in (word.partition("=") for word in given)}
    assert set(options) <= known, f"ray start knows none of {set(options) - known}"
    return options


def test_every_command_runs_what_the_setup_installs(ray_cluster: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in ray_cluster[key]:
            assert re.search(r"~/sigmoe/\.venv/bin/ray (start|stop)", command), command
