"""A rank's start on the CPU that compiles for a GPU: `python -m tests.engine.precompile_world WHAT FILE CACHE`.

Real weights, real steps, real addresses, and all of Triton but the device: where a kernel would run, nothing happens,
and every tensor that nobody has written is zero. FILE holds a pickled configuration, whose device is the CPU.
WHAT is one of the three functions at the end.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import triton
from torch.testing._internal.distributed.fake_pg import FakeStore

import router.all_to_all
from engine.build import _assemble, build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.graphs.runner import GraphRunner
from engine.model_runner import ModelRunner
from engine.precompile.launches import launch_everything, step_plans
from kernels.ahead import NoDevice, compile_for, target_of, variants_of
from kernels.permute import expert_order, reference
from scheduler.plan import StepPlan

HOPPER = target_of((9, 0))


class Idle(NoDevice):
    """A device on which kernels are loaded, and do nothing."""

    def __init__(self) -> None:
        super().__init__(HOPPER)
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (0, 1, 1, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
            unload_module=lambda module: None,
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What runs any kernel."""
        return lambda *_: None


def zeros_for_nothing() -> None:
    """No kernel writes; what is never written must be valid all the same."""
    for owner, name, zeros in (
        (torch, "empty", torch.zeros),
        (torch, "empty_like", torch.zeros_like),
        (torch.Tensor, "new_empty", torch.Tensor.new_zeros),
    ):
        setattr(owner, name, zeros)


def start(config: EngineConfig, plans: Iterable[StepPlan]) -> None:
    """Build the engine, which warms up and makes every bucket's steps, then run further steps as they are."""
    runner = built(config)._runner
    if isinstance(runner, GraphRunner):
        runner = runner._eager
    assert isinstance(runner, ModelRunner)
    for plan in plans:
        runner.run(with_drafts(plan, config))


def built(config: EngineConfig) -> Engine:
    """As a rank builds it. In a group all rows are for the first expert, and come from one rank."""
    if config.group_size == 1:
        return build_engine(config)
    dist.init_process_group("fake", store=FakeStore(), rank=config.rank, world_size=config.group_size)

    def order(ids: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        expert_order(ids, num_experts)
        return reference.expert_order(ids, num_experts)

    def send(received: torch.Tensor, sent: torch.Tensor, *_: object, **__: object) -> None:
        num_values = min(received.numel(), sent.numel())
        received.flatten()[:num_values] = sent.flatten()[:num_values]

    for module, name, instead in ((router.all_to_all, "expert_order", order), (dist, "all_to_all_single", send)):
        setattr(module, name, instead)
    return _assemble(config, None).engine


def with_drafts(plan: StepPlan, config: EngineConfig) -> StepPlan:
    """The same, where drafts are made for all its sequences by the model that is loaded."""
    method = config.speculation.loaded
    if not method.has_kv:
        return plan
    sequences = tuple(replace(planned, draft_method=method, num_proposals=2) for planned in plan.sequences)
    return replace(plan, sequences=sequences, num_draft_passes=2)


def ahead(config: EngineConfig) -> list[str]:
    """What is compiled ahead, for steps of a few sizes."""
    compile_for(HOPPER)
    return [variant.key for variant in variants_of(lambda: launch_everything(config))]


def launched(config: EngineConfig) -> list[str]:
    """What Triton is asked for in a start and in steps of every size."""
    compile_for(HOPPER)
    zeros_for_nothing()
    plans = step_plans(config, config.max_context or 1, lambda most: range(1, most + 1))
    return [variant.key for variant in variants_of(lambda: start(config, plans))]


def hits(config: EngineConfig) -> dict[str, list[str]]:
    """The kernels that a start finds in the cache, and those that it compiles."""
    triton.runtime.driver.set_active(Idle())
    found: dict[str, list[str]] = {"found": [], "compiled": []}

    def note(*, src: Any, cache_hit: bool, **_: object) -> None:
        found["found" if cache_hit else "compiled"].append(src.name)

    triton.knobs.compilation.listener = note
    zeros_for_nothing()
    start(config, step_plans(config, config.max_context or 1))
    return found


def main(what: str, file: Path, cache: str) -> None:
    """Print what was found as JSON."""
    triton.knobs.cache.dir = cache
    config: EngineConfig = pickle.loads(file.read_bytes())
    print(json.dumps({"ahead": ahead, "launched": launched, "hits": hits}[what](config)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
