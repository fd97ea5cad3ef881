"""From the configuration to the runner of fixed shapes, where there is to be one."""

from __future__ import annotations

import torch

from engine.config import EngineConfig, GraphUse
from engine.drafters.chain import ChainDrafter
from engine.graphs.buckets import Buckets
from engine.graphs.device import HostSteps, steps_on
from engine.graphs.region import Drafting
from engine.graphs.runner import GraphRunner
from engine.graphs.sizes import longest_context
from engine.graphs.steps import StepWorld
from engine.model_runner import ModelRunner
from model.bailing import BailingModel
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.collectives import CollectiveCount


def graph_runner(
    config: EngineConfig,
    model: BailingModel,
    kv: KVCache,
    drafter: ChainDrafter | None,
    device: torch.device,
    collectives: CollectiveCount,
) -> GraphRunner:
    """Record every bucket, on all ranks of a group at the same time. The last block of `kv` belongs to nobody."""
    speculation = config.speculation
    return GraphRunner(
        ModelRunner(model, kv, device, drafter, speculation),
        step_world(
            config, model, kv, None if drafter is None else Drafting(model=drafter.model, kv=drafter.kv), device
        ),
        Buckets.of(config),
        HostSteps() if config.graphs.use is GraphUse.UNRECORDED else steps_on(device, collectives),
        speculation,
    )


def step_world(
    config: EngineConfig, model: BailingModel, kv: KVCache, drafting: Drafting | None, device: torch.device
) -> StepWorld:
    """What all buckets share. The last block of `kv` belongs to nobody."""
    return StepWorld(
        model=model,
        kv=kv,
        drafting=drafting,
        device=device,
        is_alone=config.group_size == 1,
        table_width=table_width(config, model.config, kv.num_blocks - 1),
        max_drafts=config.speculation.max_drafts,
    )


def table_width(config: EngineConfig, model: ModelConfig, num_blocks: int) -> int:
    """Blocks that one sequence can have."""
    return min(-(-longest_context(config, model) // config.block_size), num_blocks)
