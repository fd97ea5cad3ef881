"""The configurations that ship as examples can be used as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import config, settings
from cluster.capacity import CapacityRequest, plan
from cluster.draft_share import DraftShare
from model.config import ModelConfig
from scheduler.request import DraftMethod

ROOT = Path(__file__).resolve().parents[2]
H20_EXAMPLE = ROOT / "examples" / "antangelmed-8xh20.yaml"


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_examples_are_valid(file: Path) -> None:
    loaded = config.load(file, environment={})
    assert Path(loaded.model.path).is_absolute(), f"{loaded.model.path} does not lie beside {file.name}"


def test_the_h20_example_adds_up() -> None:
    loaded = config.load(H20_EXAMPLE, environment={})
    model = ModelConfig.from_dir(loaded.model.path)
    made = plan(
        model, CapacityRequest.from_engine(settings.engine_config(loaded, model), model, loaded.cluster.memory_per_rank)
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
    draft = DraftShare.of(engine, model)
    assert draft.method is DraftMethod.EAGLE3
    # fc, QKV over 8,192 inputs, output, FFN, head, norms.
    fc, qkv, out = 4096 * 12288, (4096 + 2 * 1024) * 8192, 4096 * 4096
    assert draft.num_parameters == fc + qkv + out + 3 * 4096 * 14336 + 32000 * 4096 + 4 * 4096
    with_head = plan(model, CapacityRequest.from_engine(engine, model, loaded.cluster.memory_per_rank, draft))
    without = plan(model, CapacityRequest.from_engine(engine, model, loaded.cluster.memory_per_rank))
    assert with_head.kv_bytes_per_token - without.kv_bytes_per_token == 4 * 1024
    added = with_head.ranks[0].total.loaded_bytes - without.ranks[0].total.loaded_bytes
    assert added == 2 * draft.num_parameters
    assert with_head.checkpoint == without.checkpoint


def test_the_h20_example_has_yarn_for_128k() -> None:
    rope = ModelConfig.from_dir(H20_EXAMPLE.parent / "antangelmed").rope
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 32_768)
    assert (rope.rope_theta, rope.rotary_dim) == (600_000, 64)
