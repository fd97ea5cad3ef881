"""Measure what the host does in one round of drafting, while a device would compute: plan, launch, results, commit.

    python -m benchmarks.host_work [--model models/sigmoe-demo] [--batches 1 32 128] [--drafts 3] [--out FILE]

The scheduler, the runner and its buffers are those that serve; the device does nothing, and says at once that it
accepted two drafts of each sequence. So all the time is the host's. On a rank that is alone the next round is launched
before the present one is waited for ("ahead"): all of this work then lies behind the device's, unless it takes longer.
Else ("one by one") the device idles meanwhile. Prompts are computed for real, and not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.run import machine
from engine.config import EngineConfig, SpeculationConfig
from engine.drafters.build import chain_drafter, load_draft_model
from engine.engine import Engine
from engine.graphs.buckets import Buckets
from engine.graphs.device import HostSteps
from engine.graphs.region import Drafting
from engine.graphs.runner import GraphRunner
from engine.graphs.steps import StepWorld
from engine.model_runner import ModelRunner
from engine.runner import nothing_foreseen
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.local import LocalDispatcher
from router.placement import Placement
from scheduler.request import DraftMethod, Request, SamplingParams
from scheduler.scheduler import Scheduler, SchedulerConfig

ROOT = Path(__file__).parent
BLOCK_SIZE = 64
PROMPT, NUM_ACCEPTED = 16, 2
CPU = torch.device("cpu")


class IdleSteps(HostSteps):
    """A device whose work is done before it begins: every step leaves what lies in its buffers."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `StepDevice`."""
        return _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Medians over the rounds, in milliseconds of the host."""

    batch: int
    is_ahead: bool
    plan_ms: float
    run_ms: float  # filling and launching, results; ahead also what is foreseen
    commit_ms: float
    round_ms: float


def measure(model_dir: Path, batch: int, num_drafts: int, num_rounds: int, *, is_ahead: bool) -> Rounds:
    """Rounds of so many sequences, all of which go on for as long."""
    engine, runner = _engine(model_dir, batch, num_drafts, num_rounds)
    for number in range(batch):
        prompt = tuple((7 * number + at) % 1000 for at in range(PROMPT))
        sampling = SamplingParams(max_tokens=1 << 20, temperature=0.8, top_p=0.95, seed=number, ignore_eos=True)
        engine.add(Request(request_id=str(number), prompt=prompt, sampling=sampling))
    while engine.stats().num_waiting:
        engine.step()
    times = []
    for _ in range(num_rounds):
        begin_s = time.perf_counter()
        plan = engine.plan()
        planned_s = time.perf_counter()
        result = engine.run(plan, None if is_ahead else nothing_foreseen)
        ran_s = time.perf_counter()
        deltas = engine.commit(plan, result)
        end_s = time.perf_counter()
        assert len(deltas) == batch and plan.num_rows == batch * (1 + num_drafts), f"{plan.num_rows} rows"
        times.append((planned_s - begin_s, ran_s - planned_s, end_s - ran_s, end_s - begin_s))
    assert runner.num_ahead == (num_rounds - 1 if is_ahead else 0)
    plan_ms, run_ms, commit_ms, round_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return Rounds(
        batch=batch, is_ahead=is_ahead, plan_ms=plan_ms, run_ms=run_ms, commit_ms=commit_ms, round_ms=round_ms
    )


def _engine(model_dir: Path, batch: int, num_drafts: int, num_rounds: int) -> tuple[Engine, GraphRunner]:
    """The demo model, whose head drafts so many tokens, in one bucket."""
    speculation = SpeculationConfig(method=DraftMethod.EAGLE3, max_drafts=num_drafts, adaptive=False)
    config, shape = EngineConfig(model_dir=str(model_dir), speculation=speculation), ModelConfig.from_dir(model_dir)
    target = Target(dtype=torch.bfloat16, device=CPU, placement=Placement.even(shape.num_experts, 1), rank=0)
    model = load_model(model_dir, shape, target=target, dispatcher=LocalDispatcher(shape.num_experts))
    draft_model = load_draft_model(config, model, target.dtype, CPU)
    assert draft_model is not None, "a head was asked for"
    table_width = 1 + -(-(PROMPT + (num_rounds + batch) * (1 + num_drafts)) // BLOCK_SIZE)
    num_blocks = (batch + 1) * table_width
    kv = KVCache(shape, num_blocks + 1, BLOCK_SIZE, target.dtype, CPU)
    drafter = chain_drafter(draft_model, num_blocks + 1, BLOCK_SIZE, target.dtype, CPU)
    world = StepWorld(
        model=model,
        kv=kv,
        drafting=Drafting(model=draft_model, kv=drafter.kv),
        device=CPU,
        is_alone=True,
        table_width=table_width,
        max_drafts=num_drafts,
    )
    buckets = Buckets(sequences=(batch,), rows=(1 + num_drafts,))
    runner = GraphRunner(ModelRunner(model, kv, CPU, drafter, speculation), world, buckets, IdleSteps(), speculation)
    with torch.inference_mode():
        for steps in runner._steps.values():
            steps._region.outputs.accepted.fill_(NUM_ACCEPTED)
            steps._region.outputs.best.zero_()
    scheduling = SchedulerConfig(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_rows_per_step=max(batch * (1 + num_drafts), batch * PROMPT),
        max_sequences=batch,
        max_context=table_width * BLOCK_SIZE,
        draft_method=DraftMethod.EAGLE3,
        model_method=DraftMethod.EAGLE3,
        max_drafts=num_drafts,
        adaptive_drafts=False,
    )
    return Engine(Scheduler(scheduling, time.monotonic), runner), runner


def _nothing() -> None:
    """What the device does."""


def main() -> None:
    """Command line; prints and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT.parent / "models" / "sigmoe-demo")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--drafts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cells = [
        measure(options.model, batch, options.drafts, options.rounds, is_ahead=is_ahead)
        for batch in options.batches
        for is_ahead in (False, True)
    ]
    for cell in cells:
        name = "ahead" if cell.is_ahead else "one by one"
        print(
            f"batch {cell.batch:3d} {name:10s}: plan {cell.plan_ms:.3f}  run {cell.run_ms:.3f}  "
            f"commit {cell.commit_ms:.3f}  round {cell.round_ms:.3f} ms"
        )
    if options.out is not None:
        report = {"machine": machine(), "drafts": options.drafts, "rounds": [asdict(cell) for cell in cells]}
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
