"""Composition root of one rank: from a configuration to an engine that can serve."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

import kernels.native
from engine.config import Acceptance, EngineConfig, Precision
from engine.drafters.build import chain_drafter, draft_weight_bytes, kv_block_bytes, load_draft_model
from engine.drafters.memory import DraftMemory
from engine.engine import Engine
from engine.lockstep import GroupLockstep, LocalLockstep, Lockstep, join_group, reach_store
from engine.memory import available_bytes, demand_room_for_weights, kv_blocks, weight_bytes
from engine.model_runner import ModelRunner
from engine.rank import Rank, RankFacts
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.all_to_all import AllToAllDispatcher
from router.local import LocalDispatcher
from router.placement import Placement
from scheduler.plan import SequencePlan, StepPlan
from scheduler.request import SamplingParams
from scheduler.scheduler import Scheduler, SchedulerConfig

Progress = Callable[[str, int, int], None]  # stage ("loading", "warming"), bytes done, bytes in all

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    engine: Engine
    facts: RankFacts
    dispatcher: LocalDispatcher | AllToAllDispatcher


def build_engine(config: EngineConfig, on_progress: Progress | None = None) -> Engine:
    """Build an engine that holds every expert, to be stepped by the caller.

    Raises CheckpointError or ConfigError for what the checkpoint lacks, OutOfMemory for what the machine lacks.
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
            device=_device(config.device).type,
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
        num_collectives=lambda: dispatcher.num_collectives if config.speculation.debug else 0,
    )


def _assemble(config: EngineConfig, on_progress: Progress | None) -> _Parts:
    """Load the model, size the KV cache by what is left, put scheduler and runner together, warm up."""
    report = on_progress or (lambda stage, done, total: None)
    num_threads = config.num_threads or max(1, (os.cpu_count() or 1) // config.group_size)
    torch.set_num_threads(num_threads)
    kernels.native.use(config.kernels.value, amx=config.use_amx, num_threads=num_threads)
    if kernels.native.library() is not None:
        # torch's own few operations are small then, and its threads wait for one another: see docs/decisions.md.
        torch.set_num_threads(1)
    model_config = ModelConfig.from_dir(config.model_dir)
    dtype, device = _DTYPES[config.precision], _device(config.device)
    placement = Placement.even(model_config.num_experts, config.group_size)
    dispatcher = _dispatcher(config, placement)
    num_weight_bytes = weight_bytes(model_config, dtype, placement.local_experts(config.rank))
    num_weight_bytes += draft_weight_bytes(config, model_config, dtype)
    demand_room_for_weights(num_weight_bytes, available_bytes(device))
    target = Target(dtype=dtype, device=device, placement=placement, rank=config.rank)
    model = load_model(
        config.model_dir,
        model_config,
        target=target,
        dispatcher=dispatcher,
        on_progress=_hundredths(report),
    )
    draft_model = load_draft_model(config, model, dtype, device)
    draft_block_bytes = 0 if draft_model is None else kv_block_bytes(draft_model, config.block_size, dtype)
    num_blocks = kv_blocks(config, model_config, dtype, available_bytes(device), draft_block_bytes)
    kv = KVCache(model_config, num_blocks, config.block_size, dtype, device)
    drafter = None
    if draft_model is not None:
        is_drawn = config.speculation.acceptance is Acceptance.REJECTION
        memory = DraftMemory(config.max_sequences) if is_drawn else None
        drafter = chain_drafter(draft_model, num_blocks, config.block_size, dtype, device, memory)
    runner = ModelRunner(model, kv, device, drafter, config.speculation)
    report("warming", 0, 0)
    _warm_up(runner, config)
    scheduling = _scheduling(config, model_config, num_blocks)
    facts = RankFacts(
        rank=config.rank,
        device=str(device),
        experts=target.local_experts,
        weight_bytes=num_weight_bytes,
        kv_bytes=kv.num_bytes + num_blocks * draft_block_bytes,
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _dispatcher(config: EngineConfig, placement: Placement) -> LocalDispatcher | AllToAllDispatcher:
    if config.group_size == 1:
        return LocalDispatcher(placement.num_experts)
    return AllToAllDispatcher(placement, config.rank, _world())


def _world() -> dist.ProcessGroup:
    """The default process group, which `join_group` formed."""
    group = dist.group.WORLD
    assert group is not None, "the group was not joined"
    return group


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
        adaptive_drafts=config.speculation.adaptive,
    )


def _warm_up(runner: ModelRunner, config: EngineConfig) -> None:
    """Two steps that nobody waits for, a chunk and a decode, so that the first request finds everything in place.

    They write to block 0, which no sequence owns yet. Every rank of a group runs them, hence the same collectives.
    """
    method = config.speculation.loaded
    num_drafts = 1 if method.has_kv else 0  # one pass: its row is there, whatever the block size
    for step, num_rows in enumerate((min(config.block_size, 8), 1)):
        sequence = SequencePlan(
            sequence_id=-1,
            token_ids=(0,) * num_rows,
            start=0,
            block_table=(0,),
            num_logit_rows=1,
            sampling=SamplingParams(max_tokens=1, top_k=2),
            sequence_index=0,
            output_index=0,
            draft_method=method,
            num_proposals=num_drafts,
        )
        runner.run(StepPlan(step_id=-2 + step, sequences=(sequence,), num_rows=num_rows, num_draft_passes=num_drafts))
