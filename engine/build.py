"""Composition root of one rank: from a configuration to an engine that can serve."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

import kernels.native
from engine.config import Acceptance, EngineConfig
from engine.drafters.build import chain_drafter, draft_context, draft_weight_bytes, kv_block_bytes, load_draft_model
from engine.drafters.memory import DraftMemory
from engine.drafters.proposal_sizes import proposal_bytes
from engine.dtypes import activation_dtype, kv_dtype
from engine.engine import Engine
from engine.graphs.build import graph_runner
from engine.graphs.sizes import graph_bytes, runs_graphs
from engine.lockstep import GroupLockstep, LocalLockstep, Lockstep, join_group, reach_store
from engine.memory import available_bytes, demand_room_for_weights, kv_blocks, weight_bytes
from engine.model_runner import ModelRunner
from engine.precompile.ahead import compile_ahead
from engine.rank import Rank, RankFacts
from engine.runner import Runner
from engine.warm_up import warm_up
from kernels.linear import reads_fp8
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.group import GroupDispatcher
from router.local import LocalDispatcher
from router.placement import Placement
from scheduler.scheduler import Scheduler, SchedulerConfig

# Stage ("loading", "compiling", "warming"), and of how many bytes, or kernels, how many are done: done, all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    engine: Engine
    facts: RankFacts
    dispatcher: LocalDispatcher | GroupDispatcher


def build_engine(config: EngineConfig, on_progress: Progress | None = None) -> Engine:
    """Build an engine that holds every expert, to be stepped by the caller.

    Raises CheckpointError or ConfigError for what the checkpoint lacks, OutOfMemory for what the machine lacks,
    ValueError for a promise that the kernels here do not keep.
    """
    assert config.group_size == 1, "a rank of a group steps with its group: build_rank"
    return _assemble(config, on_progress).engine


def build_rank(config: EngineConfig, on_progress: Progress | None = None, store: TCPStore | None = None) -> Rank:
    """Build one rank, ready to `run`. All ranks of a group build at the same time; rank 0 brings the `store`.

    Raises what `build_engine` raises, and dist.DistError when the group cannot be formed in time.
    """
    lockstep: Lockstep = LocalLockstep()
    if config.group_size > 1:
        if store is None:
            assert config.store is not None, f"rank {config.rank} of {config.group_size} has no store to meet at"
            store = reach_store(config.store, config.group_timeout_s)
        join_group(
            store,
            rank=config.rank,
            size=config.group_size,
            epoch=config.epoch,
            device=chosen_device(config.device).type,
            timeout_s=config.group_timeout_s,
        )
        lockstep = GroupLockstep(_world(), store, config.epoch)
    parts = _assemble(config, on_progress)
    dispatcher = parts.dispatcher
    return Rank(
        parts.engine,
        lockstep,
        parts.facts,
        expert_tokens=dispatcher.load.snapshot,
        num_collectives=lambda: dispatcher.collectives.total if config.speculation.debug else 0,
    )


def _assemble(config: EngineConfig, on_progress: Progress | None) -> _Parts:
    """Load the model, size the KV cache by what is left, put scheduler and runner together, warm up."""
    report = on_progress or (lambda stage, done, total: None)
    _choose_kernels(config)
    model_config = ModelConfig.from_dir(config.model_dir)
    dtype, device = activation_dtype(config), chosen_device(config.device)
    cache_dtype = kv_dtype(config)
    placement = Placement.even(model_config.num_experts, config.group_size)
    dispatcher = expert_dispatcher(placement, config.rank, device)
    local_experts = placement.local_experts(config.rank)
    num_weight_bytes = weight_bytes(model_config, dtype, local_experts, keeps_fp8=reads_fp8(device))
    num_weight_bytes += draft_weight_bytes(config, model_config, dtype)
    demand_room_for_weights(num_weight_bytes, available_bytes(device))
    target = Target(dtype=dtype, device=device, placement=placement, rank=config.rank)
    ahead = compile_ahead(config, device)
    model = load_model(
        config.model_dir,
        model_config,
        target=target,
        dispatcher=dispatcher,
        on_progress=_hundredths(report),
    )
    draft_model = load_draft_model(config, model, dtype, device)
    draft_block_bytes = 0 if draft_model is None else kv_block_bytes(draft_model, config.block_size, cache_dtype)
    has_graphs = runs_graphs(config, device.type)
    spoken_for = proposal_bytes(config, model_config) + (graph_bytes(config, model_config) if has_graphs else 0)
    free_bytes = max(available_bytes(device) - spoken_for, 0)
    num_blocks = kv_blocks(config, model_config, cache_dtype, free_bytes, draft_block_bytes)
    num_allocated = num_blocks + int(has_graphs)  # the scheduler knows nothing of the last, where padding writes
    kv = KVCache(model_config, num_allocated, config.block_size, cache_dtype, device)
    drafter = None
    if draft_model is not None:
        is_drawn = config.speculation.acceptance is Acceptance.REJECTION
        memory = DraftMemory(config.max_sequences) if is_drawn else None
        drafter = chain_drafter(draft_model, num_allocated, config.block_size, cache_dtype, device, memory)
    if ahead is not None:
        ahead.wait(lambda done, total: report("compiling", done, total))
    report("warming", 0, 0)
    runner: Runner = ModelRunner(model, kv, device, drafter, config.speculation)
    if has_graphs:
        runner = graph_runner(config, model, kv, drafter, device, dispatcher.collectives)
    scheduling = _warmed(_scheduling(config, model_config, num_blocks), runner, config, model_config.vocab_size)
    facts = RankFacts(
        rank=config.rank,
        device=str(device),
        experts=target.local_experts,
        weight_bytes=num_weight_bytes,
        kv_bytes=kv.num_bytes + num_allocated * draft_block_bytes,
        kv_tokens=num_blocks * config.block_size,
        kernels=kernels.native.backend(),
        max_context=scheduling.context_limit,
        vocab_size=model_config.vocab_size,
        draft_model=config.speculation.loaded,
    )
    return _Parts(
        engine=Engine(Scheduler(scheduling, time.monotonic), runner),
        facts=facts,
        dispatcher=dispatcher,
    )


def _choose_kernels(config: EngineConfig) -> None:
    """Of this process, and on how many threads they run."""
    num_threads = config.num_threads or max(1, (os.cpu_count() or 1) // config.group_size)
    torch.set_num_threads(num_threads)
    kernels.native.use(
        config.kernels.value, amx=config.use_amx, num_threads=num_threads, batch_invariant=config.batch_invariant
    )
    if config.batch_invariant:
        kernels.native.demand_batch_invariance(chosen_device(config.device))
    if kernels.native.library() is not None:
        # torch's own few operations are small then, and its threads wait for one another: see docs/decisions.md.
        torch.set_num_threads(1)


def _hundredths(report: Progress) -> Callable[[int, int], None]:
    """Pass loading progress on where it has moved by a hundredth; a large model has tens of thousands of tensors."""
    reported = -1

    def on_bytes(done: int, total: int) -> None:
        nonlocal reported
        hundredth = done * 100 // max(total, 1)
        if hundredth > reported:
            reported = hundredth
            report("loading", done, total)

    return on_bytes


def chosen_device(name: str) -> torch.device:
    """The device that a configuration means: "auto" is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def expert_dispatcher(placement: Placement, rank: int, device: torch.device) -> LocalDispatcher | GroupDispatcher:
    """To the experts of a rank alone, or of all ranks, whose group must have been joined."""
    if placement.num_ranks == 1:
        return LocalDispatcher(placement.num_experts, device)
    return GroupDispatcher(placement, rank, _world(), device)


def _world() -> dist.ProcessGroup:
    """The default process group, which `join_group` formed."""
    group = dist.group.WORLD
    assert group is not None, "the group was not joined"
    return group


def _warmed(scheduling: SchedulerConfig, runner: Runner, config: EngineConfig, vocab_size: int) -> SchedulerConfig:
    """With what the steps of a warm-up cost."""
    num_blocks, context_limit = scheduling.num_blocks, scheduling.context_limit
    measured = warm_up(runner, config, vocab_size=vocab_size, num_blocks=num_blocks, context_limit=context_limit)
    return replace(scheduling, measured=measured)


def _scheduling(config: EngineConfig, model: ModelConfig, num_blocks: int) -> SchedulerConfig:
    """What the scheduler may use."""
    return SchedulerConfig(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_rows_per_step=config.max_rows_per_step,
        max_sequences=config.max_sequences,
        max_context=min(config.max_context or model.max_context, model.max_context),
        eos_token_ids=model.eos_token_ids,
        prefix_cache=config.prefix_cache,
        ageing_s=config.ageing_s,
        max_waiting=config.max_waiting,
        vocab_size=model.vocab_size,
        draft_method=config.speculation.method,
        model_method=config.speculation.loaded,
        max_drafts=config.speculation.max_drafts,
        draft_context=draft_context(config, model),
        adaptive_drafts=config.speculation.adaptive,
    )
