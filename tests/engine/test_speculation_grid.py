"""Every drafter, length, chunk and block size against plain decoding (speculative-decoding §9 A). Ten minutes or so:

pytest -m grid tests/engine/test_speculation_grid.py
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from benchmarks.speculation import read_prompts
from engine.build import build_engine
from engine.config import EngineConfig, Precision, SpeculationConfig
from engine.engine import Engine
from scheduler.request import DraftMethod, Request, SamplingParams
from tests.engine.checkpoints import SHIPPED
from tests.engine.drafting_engines import draft_model, drafting_engine
from tests.engine.mixed_requests import ROOMY, run_all
from tests.engine.shipped_model import demand_acceptance, outcome_for, requests_for
from tests.engine.test_drafting_shipped import SETTINGS

pytestmark = [pytest.mark.grid, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "sigmoe-demo"
NUM_PROMPTS = 200
METHODS = (DraftMethod.EAGLE3, DraftMethod.MTP, DraftMethod.NGRAM)
GREEDY = SamplingParams(max_tokens=128, temperature=0.0)
SAMPLINGS = {
    "greedy": lambda: GREEDY,
    "drawn": lambda: dataclasses.replace(GREEDY, temperature=0.8, repetition_penalty=1.05, min_p=0.01, top_k=100),
    "biased": lambda: dataclasses.replace(SETTINGS["all"](), max_tokens=128, min_tokens=40),
}


@functools.cache
def prompts() -> tuple[tuple[int, ...], ...]:
    files = sorted((ROOT / "sigmoe" / "loadtest" / "data").glob("medical_*.jsonl"))
    found = tuple(prompt for file in files for prompt in read_prompts(file, MODEL))[:NUM_PROMPTS]
    assert len(found) == NUM_PROMPTS
    return found


def shipped(method: DraftMethod, num_drafts: int) -> Engine:
    speculation = SpeculationConfig(method=method, max_drafts=num_drafts, adaptive=False, ngram_shortest=1)
    return build_engine(
        EngineConfig(
            model_dir=str(MODEL),
            precision=Precision.FP32,
            max_sequences=32,
            max_context=512,
            speculation=speculation if num_drafts else SpeculationConfig(),
        )
    )


def answers(engine: Engine, sampling: SamplingParams) -> list[tuple[int, ...]]:
    told: list[tuple[int, ...]] = [()] * len(prompts())
    for number, prompt in enumerate(prompts()):
        how = dataclasses.replace(sampling, seed=number)
        engine.add(Request(request_id=str(number), prompt=prompt, sampling=how))
    while engine.has_work:
        for delta in engine.step():
            told[int(delta.request_id)] += delta.token_ids
    return told


@functools.cache
def plain(sampling: str) -> list[tuple[int, ...]]:
    return answers(shipped(DraftMethod.NONE, 0), SAMPLINGS[sampling]())


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("num_drafts", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("method", METHODS)
def test_two_hundred_prompts_of_the_shipped_model(method: DraftMethod, num_drafts: int, sampling: str) -> None:
    engine = shipped(method, num_drafts)
    assert answers(engine, SAMPLINGS[sampling]()) == plain(sampling)
    assert engine.stats().drafts.num_rounds > 0


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("max_rows", [2, 7, 16, 512])
@pytest.mark.parametrize("num_drafts", [1, 3, 7])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["C", SHIPPED])
def test_chunks_and_blocks(shape: str, method: DraftMethod, num_drafts: int, max_rows: int, block_size: int) -> None:
    config = dataclasses.replace(
        ROOMY,
        block_size=block_size,
        num_blocks=256 * 16 // block_size,
        max_rows_per_step=max_rows,
        max_sequences=min(16, max_rows),
        prefix_cache=True,
        draft_method=method,
        model_method=method if method.has_kv else DraftMethod.NONE,
        max_drafts=num_drafts,
        adaptive_drafts=False,
    )
    engine, _ = drafting_engine(config, shape, draft_model(method, shape))
    for requests in (requests_for(shape), requests_for(shape)[::-1]):
        assert run_all(engine, requests) == outcome_for(shape)
    if shape == SHIPPED:
        demand_acceptance(engine, method, min(num_drafts, max_rows - 1))
