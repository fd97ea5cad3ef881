"""Logits under expert parallelism are those of one process, to the last bit in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from model.checkpoint import Target, load_model
from model.config import ModelConfig
from router.all_to_all import AllToAllDispatcher
from router.placement import Placement
from tests.oracle.comparison import assert_same, random_ids
from tests.oracle.tiny_models import CPU, TinyModel, block_table, kv_cache, ragged_batch, run_prompt
from tests.router.group import run_ranks

TABLE = tuple((expert * 7) % 4 if expert % 3 else 3 for expert in range(16))  # uneven, scattered


def placements() -> list[Placement]:
    return [*(Placement.even(16, num_ranks) for num_ranks in (1, 2, 3, 4)), Placement.from_table(TABLE, 4)]


def prompts_of(rank: int) -> list[list[int]]:
    """Different work on each rank; the last one has none."""
    return [random_ids(5 + 4 * rank, 512, rank), random_ids(3, 512, 50 + rank)] if rank < 3 else []


def one_rank(rank: int, world: dist.ProcessGroup, folder: str) -> list[torch.Tensor]:
    """Logits of this rank's prompts under each placement that has room for it; a prefill step, then a decode step."""
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 3)} | {4: world}
    config = ModelConfig.from_dir(folder)
    outputs = []
    for placement in placements():
        if rank >= placement.num_ranks:
            continue
        dispatcher = AllToAllDispatcher(placement, rank, groups[placement.num_ranks])
        target = Target(dtype=torch.float32, device=CPU, placement=placement, rank=rank)
        model = load_model(folder, config, target=target, dispatcher=dispatcher)
        kv = kv_cache(model)
        tables = [block_table(20, 6 * index) for index in range(2)]
        prompts = prompts_of(rank)
        first = [(ids[:-1], 0, table) for ids, table in zip(prompts, tables, strict=False)]
        second = [(ids[-1:], len(ids) - 1, table) for ids, table in zip(prompts, tables, strict=False)]
        outputs += [model.forward(ragged_batch(parts), kv).logits for parts in (first, second)]
    return outputs


def test_logits_equal_those_of_one_process(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    world = tiny("B")
    model = world.load()
    results = [iter(outputs) for outputs in run_ranks(4, tmp_path, one_rank, str(world.folder))]
    for placement in placements():
        for rank in range(placement.num_ranks):
            prefill, decode = next(results[rank]), next(results[rank])
            alone = [run_prompt(model, ids).logits for ids in prompts_of(rank)]
            where = f"rank {rank} of {placement.num_ranks}"
            expected = torch.cat([part[:-1] for part in alone]) if alone else prefill.new_empty(0, 512)
            assert_same(prefill, expected, f"{where}, prefill")
            expected = torch.cat([part[-1:] for part in alone]) if alone else decode.new_empty(0, 512)
            assert_same(decode, expected, f"{where}, decode")
