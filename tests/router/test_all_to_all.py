"""The all-to-all dispatcher on real gloo groups of 1 to 4 ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from experts.layout import ExpertShape
from experts.shard import ExpertShard
from router.all_to_all import AllToAllDispatcher
from router.dispatch import ExpertChoice
from router.local import LocalDispatcher
from router.placement import Placement
from tests.oracle.comparison import assert_same
from tests.router.group import run_ranks

HIDDEN, WIDTH, EXPERTS, TOP_K = 16, 8, 10, 4
TABLE = (3, 0, 0, 2, 1, 3, 3, 0, 2, 3)  # rank 1 holds one expert; none is where even placement would put it
EMPTY = (0, 0, 2, 2, 2, 0, 0, 2, 2, 2)  # rank 1 holds none


def rows_and_choice(rank: int, num_rows: int, skew: bool) -> tuple[torch.Tensor, ExpertChoice]:
    generator = torch.Generator().manual_seed(100 + rank)
    hidden = torch.randn(num_rows, HIDDEN, generator=generator)
    scores = torch.rand(num_rows, EXPERTS, generator=generator)
    if skew:
        scores[:, :TOP_K] += 1  # every row to the first experts
    ids = scores.argsort(1, descending=True)[:, :TOP_K].to(torch.int32).contiguous()
    return hidden, ExpertChoice(ids=ids, weights=torch.full((num_rows, TOP_K), 1 / TOP_K))


def expert_weights(expert: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(expert)
    shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def shard_of(experts: tuple[int, ...], dtype: torch.dtype) -> ExpertShard:
    shard = ExpertShard.allocate(len(experts), ExpertShape(hidden_size=HIDDEN, width=WIDTH), dtype)
    for index, expert in enumerate(experts):
        gate, up, down = expert_weights(expert, dtype)
        shard.fill(index, gate, up, down)
    return shard


def cases() -> list[tuple[Placement, tuple[int, ...], bool, torch.dtype]]:
    """(placement, rows of each rank, skewed, dtype)."""
    even = {num_ranks: Placement.even(EXPERTS, num_ranks) for num_ranks in (1, 2, 3, 4)}
    return [
        (even[1], (5,), False, torch.float32),
        (even[2], (7, 3), False, torch.float32),
        (even[2], (0, 4), True, torch.float32),
        (even[2], (6, 1), False, torch.bfloat16),
        (even[3], (4, 0, 9), False, torch.float32),
        (even[4], (3, 1, 0, 8), False, torch.float32),
        (even[4], (0, 0, 0, 0), False, torch.float32),
        (Placement.from_table(TABLE, 4), (2, 5, 1, 4), False, torch.bfloat16),
        (Placement.from_table(EMPTY, 3), (2, 5, 1), True, torch.float32),
    ]


def one_rank(rank: int, world: dist.ProcessGroup) -> list[dict[str, Any]]:
    """Run every case of which this rank is a member."""
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 3)} | {4: world}
    results = []
    for placement, num_rows, skew, dtype in cases():
        if rank >= placement.num_ranks:
            continue
        hidden, choice = rows_and_choice(rank, num_rows[rank], skew)
        hidden = hidden.to(dtype)
        dispatcher = AllToAllDispatcher(placement, rank, groups[placement.num_ranks])
        handle, rows = dispatcher.dispatch(hidden, choice)
        echo = dispatcher.combine(rows, handle).combined()
        handle, rows = dispatcher.dispatch(hidden, choice)
        answers = shard_of(placement.local_experts(rank), dtype)(rows, handle.counts)
        out = dispatcher.combine(answers, handle).combined()
        results.append({"echo": echo, "out": out, "load": dispatcher.load.snapshot()})
    return results


def test_every_row_comes_home_with_the_answers_of_its_experts(tmp_path: Path) -> None:
    results = [iter(result) for result in run_ranks(4, tmp_path, one_rank)]
    for placement, num_rows, skew, dtype in cases():
        for rank in range(placement.num_ranks):
            result, where = next(results[rank]), f"rank {rank} of {placement.num_ranks}, rows {num_rows}, {dtype}"
            hidden, choice = rows_and_choice(rank, num_rows[rank], skew)
            hidden = hidden.to(dtype)
            assert torch.equal(result["echo"], hidden), f"combine after dispatch is not the identity: {where}"
            local = LocalDispatcher(EXPERTS)
            handle, rows = local.dispatch(hidden, choice)
            answers = shard_of(tuple(range(EXPERTS)), dtype)(rows, handle.counts)
            # One process and many give the same bits: a row's result does not depend on its neighbours.
            assert_same(result["out"], local.combine(answers, handle).combined(), where)
            assert result["load"] == tuple(2 * n for n in local.load.snapshot()), where
