"""Drafting changes no token: any drafter, any length, any settings of the scheduler; and its KV stays whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.build import build_engine
from engine.config import EngineConfig, Precision, SpeculationConfig
from model.errors import CheckpointError
from scheduler.request import DraftMethod, Request, SamplingParams
from scheduler.scheduler import SchedulerConfig
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import (
    Foreseeing,
    draft_model,
    drafting_engine,
    eagle3_folder,
    eagle3_head,
    values_of,
)
from tests.engine.mixed_requests import ROOMY, alone, mixed_requests, run_all

SHAPE = "C"  # has an MTP layer
METHODS = (DraftMethod.EAGLE3, DraftMethod.MTP, DraftMethod.NGRAM)


def drafting(method: DraftMethod, max_drafts: int, config: SchedulerConfig = ROOMY) -> SchedulerConfig:
    return dataclasses.replace(
        config,
        draft_method=method,
        model_method=method if method.has_kv else DraftMethod.NONE,
        max_drafts=max_drafts,
        adaptive_drafts=False,
    )


@pytest.mark.parametrize("max_drafts", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("method", METHODS)
def test_no_drafter_and_no_length_changes_a_token(method: DraftMethod, max_drafts: int) -> None:
    engine, _ = drafting_engine(drafting(method, max_drafts), SHAPE, draft_model(method, SHAPE))
    assert run_all(engine, mixed_requests()) == alone(SHAPE)
    assert engine.stats().drafts.num_rounds > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "changes",
    [
        {"max_rows_per_step": 7, "max_sequences": 5},
        {"block_size": 1, "num_blocks": 2048, "prefix_cache": True},
        {"block_size": 4, "num_blocks": 512, "prefix_cache": True},
        {"block_size": 4, "num_blocks": 20, "max_rows_per_step": 32, "max_sequences": 6, "prefix_cache": True},
        {"adaptive_drafts": True, "prefix_cache": True},
    ],
    ids=lambda changes: ", ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_no_setting_of_the_scheduler_changes_a_token(method: DraftMethod, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(drafting(method, 3), **changes)
    engine, _ = drafting_engine(config, SHAPE, draft_model(method, SHAPE))
    for _ in range(2):
        assert run_all(engine, mixed_requests()) == alone(SHAPE)
    assert engine.stats().drafts.num_rounds > 0


def test_right_drafts_are_all_accepted_and_wrong_ones_never() -> None:
    config = drafting(DraftMethod.EAGLE3, 3)
    for spoil, tau in ((lambda token: token, 4.0), (lambda token: (token + 1) % 512, 1.0)):
        engine, _ = drafting_engine(config, SHAPE, drafter=Foreseeing(config, SHAPE, spoil))
        assert run_all(engine, mixed_requests()) == alone(SHAPE)
        counts = engine.stats().drafts
        # 9 tokens after the first: rounds of 4, 4 and 1.
        assert sum(counts.accepted) == (sum(counts.drafted) if tau > 1 else 0)
        assert counts.num_committed == counts.num_rounds * tau


@pytest.mark.parametrize("drafts", ["eagle3", "mtp", "mostly right"])
def test_the_draft_models_rows_are_those_of_a_fresh_prefill(drafts: str) -> None:
    """Rounds leave no provisional row behind and skip no accepted one: attention would read it for ever."""
    request = next(request for request in mixed_requests() if request.request_id == "shared alone")
    method = DraftMethod.MTP if drafts == "mtp" else DraftMethod.EAGLE3
    config = dataclasses.replace(drafting(method, 3), block_size=4, num_blocks=64)
    model = draft_model(method, SHAPE)
    if drafts == "mostly right":
        grown, grown_drafter = drafting_engine(
            config, SHAPE, drafter=Foreseeing(config, SHAPE, lambda token: token if token % 3 else token + 1)
        )
    else:
        grown, grown_drafter = drafting_engine(config, SHAPE, model)
    grown.add(request)
    tokens = list(request.prompt)
    while len(tokens) < len(request.prompt) + 6:
        plan = grown.plan()
        for delta in grown.execute(plan):
            tokens += delta.token_ids
    table, num_rows = plan.sequences[0].block_table, len(tokens) - 1
    fresh, fresh_drafter = drafting_engine(config, SHAPE, model)
    fresh.add(dataclasses.replace(request, prompt=tuple(tokens)))
    planned = fresh.plan()
    fresh.execute(planned)
    assert grown_drafter is not None and fresh_drafter is not None
    torch.testing.assert_close(
        values_of(grown_drafter.kv, table, num_rows),
        values_of(fresh_drafter.kv, planned.sequences[0].block_table, num_rows),
        rtol=1e-5,
        atol=1e-5,
    )
    counts = grown.stats().drafts
    assert sum(counts.accepted) < sum(counts.drafted), "every draft was right"
    assert drafts != "mostly right" or sum(counts.accepted) > 0


def test_chunks_and_prefix_hits_leave_the_draft_models_rows_whole() -> None:
    prompt = tuple(range(60, 83))
    sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    base = dataclasses.replace(drafting(DraftMethod.EAGLE3, 2), block_size=4, num_blocks=64, prefix_cache=True)
    whole, whole_drafter = drafting_engine(base, SHAPE, eagle3_head(SHAPE))
    whole.add(Request(request_id="whole", prompt=prompt, sampling=sampling))
    expected = whole.plan()
    whole.execute(expected)
    for rows in (3, 5):
        config = dataclasses.replace(base, max_rows_per_step=rows, max_sequences=2)
        engine, drafter = drafting_engine(config, SHAPE, eagle3_head(SHAPE))
        other = (*prompt[:16], 3, 4)  # shares four blocks and parts right behind them
        for name, ids in (("other", other), ("chunked", prompt)):
            engine.add(Request(request_id=name, prompt=ids, sampling=sampling))
            while engine.has_work:
                plan = engine.plan()
                table = list(plan.sequences[-1].block_table)
                engine.execute(plan)
        assert drafter is not None and whole_drafter is not None
        torch.testing.assert_close(
            values_of(drafter.kv, table, len(prompt)),
            values_of(whole_drafter.kv, expected.sequences[0].block_table, len(prompt)),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("method", METHODS)
def test_a_built_engine_drafts(method: DraftMethod) -> None:
    config = EngineConfig(
        model_dir=str(tiny_checkpoint(SHAPE)),
        precision=Precision.FP32,
        num_blocks=64,
        max_sequences=8,
        max_context=128,
        speculation=SpeculationConfig(
            method=method, draft_dir=str(eagle3_folder(SHAPE)), max_drafts=2, adaptive=False, ngram_shortest=1
        ),
    )
    engine = build_engine(config)
    assert run_all(engine, mixed_requests()) == alone(SHAPE)
    stats = engine.stats()
    assert stats.drafts.num_rounds > 0 and stats.forward_s > 0.0 and stats.drafting[0].length == 2


def test_what_cannot_draft_is_refused(tmp_path: Path) -> None:
    config = EngineConfig(model_dir=str(tiny_checkpoint("B")), num_blocks=8, max_sequences=2, max_context=64)
    mtp = dataclasses.replace(config, speculation=SpeculationConfig(method=DraftMethod.MTP))
    with pytest.raises(CheckpointError, match="num_nextn_predict_layers"):
        build_engine(mtp)
    nowhere = SpeculationConfig(method=DraftMethod.EAGLE3, draft_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        build_engine(dataclasses.replace(config, speculation=nowhere))
