"""Engines whose decodes and verifies run in buckets, unrecorded, over the tiny models of `mixed_requests`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch

from engine.config import Acceptance, SpeculationConfig
from engine.drafters.build import chain_drafter
from engine.drafters.draft_model import DraftModel
from engine.drafters.memory import DraftMemory
from engine.engine import Engine
from engine.graphs.buckets import Bucket, Buckets
from engine.graphs.device import CudaSteps, HostSteps, StepDevice
from engine.graphs.region import Drafting
from engine.graphs.runner import GraphRunner
from engine.graphs.steps import StepWorld
from engine.model_runner import ModelRunner
from engine.runner import Foresight, nothing_foreseen
from kernels.paged_attention import KVLayer
from model.bailing import BailingModel
from model.kv_cache import KVCache
from scheduler.plan import StepPlan, StepResult, StepShape
from scheduler.request import DraftMethod, Request, TokenDelta
from scheduler.scheduler import Scheduler, SchedulerConfig
from tests.engine.mixed_requests import CPU, mixed_requests, outcome_of, tiny

BUCKETS = Buckets(sequences=(1, 3, 6, 12), rows=(1, 2, 4, 6))


class Overseen:
    """A runner that remembers which bucket each step ran in, None for those that ran as they were."""

    def __init__(
        self,
        runner: GraphRunner,
        behind: Callable[[StepPlan], None],
        begin: Callable[[], None] = lambda: None,
        *,
        is_ahead: bool = True,
    ) -> None:
        self.runner = runner
        self.is_ahead = is_ahead  # else the next step is not even asked for
        self.ran: list[Bucket | None] = []
        self.is_running = False
        self._begin, self._behind = begin, behind

    def shape(self, plan: StepPlan) -> StepShape | None:
        return self.runner.shape(plan)

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        return self.runner.under_way(plan)

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        self.ran.append(self.runner.bucket(plan))
        self._begin()
        self.is_running = True
        result = self.runner.run(plan, foresee if self.is_ahead else nothing_foreseen)
        self.is_running = False
        self._behind(plan)
        return result


class Recorder(CudaSteps):
    """Records as on a GPU, and copies and waits as on the host."""

    host_memory = HostSteps.host_memory
    copy = HostSteps.copy
    mark = HostSteps.mark


class Graph:
    """Of a CUDA graph what `CudaSteps` uses."""

    def __init__(self) -> None:
        self.replay: Callable[[], None] = lambda: None


def record_without_gpu(monkeypatch: pytest.MonkeyPatch, recording: Callable[..., AbstractContextManager[None]]) -> None:
    """Let `CudaSteps` run within `recording` what it records; what is repeated does nothing then."""
    for name, fake in {
        "graph": recording,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: None,
        "synchronize": lambda _: None,
        "device": lambda _: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWorld:
    engine: Engine
    runner: Overseen
    kv: KVCache
    draft_kv: KVLayer | None


def graph_runner(
    config: SchedulerConfig,
    model: BailingModel,
    draft_model: DraftModel | None = None,
    *,
    buckets: Buckets = BUCKETS,
    steps: StepDevice | None = None,
    acceptance: Acceptance = Acceptance.MATCH,
    is_alone: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[GraphRunner, KVCache, KVLayer | None]:
    num_blocks = config.num_blocks + 1
    kv = KVCache(model.config, num_blocks, config.block_size, dtype, CPU)
    memory = DraftMemory(config.max_sequences) if acceptance is Acceptance.REJECTION else None
    drafter = None
    if draft_model is not None:
        drafter = chain_drafter(draft_model, num_blocks, config.block_size, dtype, CPU, memory)
    speculation = SpeculationConfig(method=config.draft_method, ngram_shortest=1, acceptance=acceptance)
    world = StepWorld(
        model=model,
        kv=kv,
        drafting=None if drafter is None else Drafting(model=drafter.model, kv=drafter.kv),
        device=CPU,
        is_alone=is_alone,
        table_width=-(-(config.context_limit + 2 * config.max_drafts) // config.block_size),
        max_drafts=config.max_drafts,
    )
    eager = ModelRunner(model, kv, CPU, drafter, speculation)
    runner = GraphRunner(eager, world, buckets, steps or HostSteps(), speculation)
    return runner, kv, None if drafter is None else drafter.kv


def graph_engine(
    config: SchedulerConfig,
    shape: str,
    draft_model: DraftModel | None = None,
    *,
    acceptance: Acceptance = Acceptance.MATCH,
    is_ahead: bool = True,
    behind: Callable[[StepPlan], None] = lambda plan: None,
) -> GraphWorld:
    runner, kv, draft_kv = graph_runner(config, tiny(shape), draft_model, acceptance=acceptance)
    overseen = Overseen(runner, behind, is_ahead=is_ahead)
    engine = Engine(Scheduler(config, lambda: 0.0), overseen)
    return GraphWorld(engine=engine, runner=overseen, kv=kv, draft_kv=draft_kv)


def plain_requests() -> list[Request]:
    """The mixed requests without what the buckets do not hold, but for the penalised ones, which come last."""
    requests = [
        dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, num_logprobs=None))
        for request in mixed_requests()
    ]
    return sorted(requests, key=lambda request: request.sampling.repetition_penalty != 1.0)


def drafting(config: SchedulerConfig, method: DraftMethod, max_drafts: int) -> SchedulerConfig:
    """The configuration with this way to draft."""
    return dataclasses.replace(
        config,
        draft_method=method,
        model_method=method if method.has_kv else DraftMethod.NONE,
        max_drafts=max_drafts,
        adaptive_drafts=False,
    )


def demand_no_event_changes_a_token(
    engine: Engine, events: list[tuple[str, int]], expected: dict[tuple[str, int], tuple[int, ...]]
) -> None:
    """Add, abort (within a step, too) and step as told, then to the end; the others come out as expected."""
    requests = plain_requests()
    live: set[str] = set()
    aborted: set[str] = set()
    deltas: list[TokenDelta] = []
    for event, number in events:
        request = requests[number]
        if event == "add" and request.request_id not in live:
            live.add(request.request_id)
            engine.add(request)
        elif event == "abort" and request.request_id in live:
            aborted.add(request.request_id)
            engine.abort(request.request_id)
        elif event == "abort in a step" and request.request_id in live:
            aborted.add(request.request_id)
            plan = engine.plan()
            engine.abort(request.request_id)
            deltas += engine.execute(plan)
        else:
            deltas += engine.step()
        engine.check_integrity()
    while engine.has_work:
        deltas += engine.step()
        engine.check_integrity()
    told = {key: tokens for key, (tokens, _) in outcome_of(deltas).items()}
    for key, tokens in expected.items():
        if key[0] in live and key[0] not in aborted:
            assert told[key] == tokens, f"{key} came out otherwise"
