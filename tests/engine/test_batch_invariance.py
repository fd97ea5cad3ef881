"""`engine.batch_invariant`: the same tokens and log-probabilities, to the last bit, whatever runs beside a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.shapes import shape_dict
from engine.build import build_engine
from engine.config import EngineConfig, GraphConfig, GraphUse, KernelChoice, KVPrecision, Precision, SpeculationConfig
from engine.engine import Engine
from kernels import native
from scheduler.request import DraftMethod, Request, SamplingParams
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import eagle3_folder
from tests.engine.mixed_requests import Outcome, mixed_requests, run_all

CONFIG = EngineConfig(
    model_dir="", precision=Precision.BF16, num_blocks=160, max_sequences=8, max_context=128, batch_invariant=True
)


@pytest.fixture(autouse=True)
def default_kernels() -> Iterator[None]:
    yield
    native.use("auto")


def built(shape: str, **changes: object) -> Engine:
    return build_engine(dataclasses.replace(CONFIG, model_dir=str(tiny_checkpoint(shape)), **changes))  # type: ignore[arg-type]


def each_alone(engine: Engine, requests: list[Request]) -> Outcome:
    """Every request by itself; without a prefix cache the engine is as good as new."""
    outcome: Outcome = {}
    for request in requests:
        outcome |= run_all(engine, [request])
    return outcome


@pytest.mark.parametrize("kept", KVPrecision)
def test_bf16_on_the_cpu(kept: KVPrecision) -> None:
    """Alone; among all others; in small chunks, with cached prefixes and preemption; with drafts; in fixed shapes."""
    alone = each_alone(built("C", prefix_cache=False, kv_precision=kept), mixed_requests())
    assert len({tokens for tokens, _ in alone.values()}) > 5
    drafting = SpeculationConfig(
        method=DraftMethod.EAGLE3, draft_dir=str(eagle3_folder("C")), max_drafts=3, adaptive=False
    )
    ways: list[dict[str, object]] = [
        {},
        {"max_rows_per_step": 7, "max_sequences": 7},
        {"block_size": 4, "num_blocks": 20, "max_rows_per_step": 32, "max_sequences": 6},
        {"speculation": drafting},
        {"num_threads": 1},
        {"graphs": GraphConfig(use=GraphUse.UNRECORDED)},
    ]
    for changes in ways:
        engine = built("C", kv_precision=kept, **changes)
        assert run_all(engine, mixed_requests()) == alone, changes
    assert native.is_batch_invariant()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tiny models are loaded onto the CPU")
def test_triton_kernels(tmp_path: Path) -> None:
    """In the interpreter, where a step takes a second: a prompt in one chunk alone, in three beside another request."""
    from tests.kernels.interpreter import repair  # with Triton, which takes a second to import

    repair()
    small = {"num_hidden_layers": 2, "num_experts": 4, "n_group": 2, "topk_group": 2, "vocab_size": 128}
    folder = write_checkpoint(tmp_path / "small", shape_dict("A") | small, torch.float32, seed=3)
    sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, num_logprobs=1)
    ours = Request(request_id="ours", prompt=tuple(range(40, 50)), sampling=sampling)
    other = Request(request_id="other", prompt=(5, 6, 7), sampling=dataclasses.replace(sampling, max_tokens=4))
    roomy, narrow = (
        dataclasses.replace(
            CONFIG,
            model_dir=str(folder),
            precision=Precision.FP32,
            kernels=KernelChoice.TRITON,
            device="cpu",
            max_rows_per_step=rows,
            max_sequences=2,
        )
        for rows in (16, 4)
    )
    alone, together = run_all(build_engine(roomy), [ours]), run_all(build_engine(narrow), [other, ours])
    assert together["ours", 0] == alone["ours", 0]
    assert alone["ours", 0][1], "log-probabilities are compared, too"


def test_kernels_that_do_not_promise_it_are_refused() -> None:
    with pytest.raises(ValueError, match=r"engine\.batch_invariant: the torch kernels"):
        built("A", kernels=KernelChoice.TORCH)
