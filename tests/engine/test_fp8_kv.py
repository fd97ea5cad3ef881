"""An FP8 KV cache: half the bytes, and the same tokens whatever the machinery, as with any other cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.build import build_rank
from engine.config import EngineConfig, KVPrecision, Precision, SpeculationConfig
from scheduler.request import DraftMethod
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import draft_model, drafting_engine
from tests.engine.mixed_requests import ROOMY, alone, make_engine, mixed_requests, run_all

FP8 = torch.float8_e4m3fn
TIGHT = dataclasses.replace(
    ROOMY, block_size=4, num_blocks=20, max_rows_per_step=32, max_sequences=6, prefix_cache=True
)


def test_it_is_another_cache() -> None:
    """Otherwise what follows would prove nothing: some log-probabilities move."""
    assert alone("B", FP8) != alone("B")


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_rows_per_step": 7, "max_sequences": 7}, {"block_size": 1, "num_blocks": 2048}],
    ids=["batch", "chunks", "blocks of one"],
)
def test_neighbours_chunks_and_blocks_do_not_matter(changes: dict[str, int]) -> None:
    config = dataclasses.replace(ROOMY, **changes)  # type: ignore[arg-type]
    assert run_all(make_engine(config, kv_dtype=FP8), mixed_requests()) == alone("B", FP8)


def test_cached_prefixes_and_preemption_do_not_matter() -> None:
    engine = make_engine(TIGHT, kv_dtype=FP8)
    for _ in range(2):
        assert run_all(engine, mixed_requests()) == alone("B", FP8)
    assert engine.stats().num_preemptions > 0 and engine.stats().prefix_hit_tokens > 0


@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP])
def test_drafts_do_not_matter(method: DraftMethod) -> None:
    config = dataclasses.replace(
        ROOMY, draft_method=method, model_method=method, max_drafts=3, adaptive_drafts=False, prefix_cache=True
    )
    engine, drafter = drafting_engine(config, "C", draft_model(method, "C"), kv_dtype=FP8)
    assert run_all(engine, mixed_requests()) == alone("C", FP8)
    assert engine.stats().drafts.num_rounds > 0
    assert drafter is not None and drafter.kv.key.dtype == FP8, "the draft model's keys are FP8, too"


def test_a_rank_holds_more_tokens_in_the_same_bytes() -> None:
    config = EngineConfig(
        model_dir=str(tiny_checkpoint("C")),
        precision=Precision.FP32,
        kv_bytes=2**20,
        max_sequences=4,
        max_context=64,
        speculation=SpeculationConfig(method=DraftMethod.MTP, max_drafts=1),
    )
    plain, fp8 = (
        build_rank(dataclasses.replace(config, kv_precision=kept)).facts for kept in (KVPrecision.AUTO, KVPrecision.FP8)
    )
    assert abs(fp8.kv_tokens - 4 * plain.kv_tokens) < 4 * config.block_size
    assert 0.9 * 2**20 < fp8.kv_bytes <= 2**20
