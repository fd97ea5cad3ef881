"""The composition root with steps in fixed shapes: the same answers, and memory that is spoken for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from engine.build import build_engine
from engine.config import EngineConfig, GraphConfig, GraphUse, KernelChoice, Precision, SpeculationConfig
from engine.graphs.buckets import Bucket, Buckets
from engine.graphs.runner import GraphRunner
from engine.graphs.sizes import graph_bytes, runs_graphs
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from scheduler.plan import StepShape
from scheduler.request import DraftMethod
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import eagle3_folder
from tests.engine.graph_engines import plain_requests
from tests.engine.mixed_requests import alone, run_all

SHAPE = "C"


def configured(**changes: Any) -> EngineConfig:
    base = EngineConfig(
        model_dir=str(tiny_checkpoint(SHAPE)),
        precision=Precision.FP32,
        device="cpu",
        num_blocks=128,
        max_sequences=8,
        max_context=128,
        graphs=GraphConfig(use=GraphUse.UNRECORDED, max_sequences=6),
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("method", [DraftMethod.NONE, DraftMethod.EAGLE3, DraftMethod.MTP])
def test_an_engine_that_is_built_with_buckets_says_the_same(method: DraftMethod) -> None:
    speculation = SpeculationConfig(method=method, draft_dir=str(eagle3_folder(SHAPE)), max_drafts=2)
    engine = build_engine(configured(speculation=speculation))
    assert isinstance(engine._runner, GraphRunner)
    told = {key: tokens for request in plain_requests() for key, (tokens, _) in run_all(engine, [request]).items()}
    assert told == {key: tokens for key, (tokens, _) in alone(SHAPE).items()}
    assert engine.stats().num_blocks == 128, "the scratch block is not the scheduler's"


def test_the_scheduler_knows_what_contexts_a_head_is_meant_for() -> None:
    head = eagle3_folder(SHAPE)
    for method in (DraftMethod.EAGLE3, DraftMethod.MTP, DraftMethod.NONE):
        config = configured(speculation=SpeculationConfig(method=method, draft_dir=str(head), max_drafts=2))
        known = build_engine(config)._scheduler._drafting._config.draft_context
        positions = Eagle3Config.from_dir(head, ModelConfig.from_dir(tiny_checkpoint(SHAPE))).max_context
        assert positions is not None
        assert known == (positions if method is DraftMethod.EAGLE3 else None)


def test_graphs_run_on_a_gpu_with_its_kernels_alone() -> None:
    auto = configured(graphs=GraphConfig())
    assert runs_graphs(auto, "cuda") and not runs_graphs(auto, "cpu")
    assert not runs_graphs(dataclasses.replace(auto, kernels=KernelChoice.TORCH), "cuda")
    assert not runs_graphs(configured(graphs=GraphConfig(use=GraphUse.OFF)), "cuda")


def test_buckets_hold_what_they_are_chosen_for() -> None:
    drafting = SpeculationConfig(method=DraftMethod.NGRAM, max_drafts=5)
    buckets = Buckets.of(configured(max_sequences=100, graphs=GraphConfig(max_sequences=64), speculation=drafting))
    assert buckets.sequences == (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    assert buckets.rows == (1, 2, 4, 6)
    assert buckets.all[0] == buckets.largest == Bucket(num_sequences=64, rows_each=6)
    assert len(set(buckets.all)) == len(buckets.sequences) * len(buckets.rows)
    for num_sequences in range(65):
        for most_rows in range(1, 7):
            bucket = buckets.smallest(StepShape(num_sequences=num_sequences, most_rows=most_rows))
            assert bucket is not None
            assert bucket.num_sequences >= num_sequences and bucket.rows_each >= most_rows
            assert not [
                other
                for other in buckets.all
                if other.num_sequences >= num_sequences
                and other.rows_each >= most_rows
                and (other.num_sequences < bucket.num_sequences or other.rows_each < bucket.rows_each)
            ]
    assert buckets.smallest(StepShape(num_sequences=65, most_rows=1)) is None
    assert buckets.smallest(StepShape(num_sequences=1, most_rows=7)) is None
    assert Buckets.of(configured(max_sequences=3)).sequences[-1] == 3
    assert Buckets.of(configured(max_sequences=1)).all == (Bucket(num_sequences=1, rows_each=1),)


def test_more_room_for_graphs_takes_more_memory() -> None:
    model = ModelConfig.from_dir(tiny_checkpoint(SHAPE))
    sizes = [graph_bytes(configured(graphs=GraphConfig(max_sequences=n)), model) for n in (1, 4, 8)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert graph_bytes(configured(group_size=4), model) > graph_bytes(configured(), model)
