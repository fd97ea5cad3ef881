"""Fixed capacity against the dispatcher of one rank, bit for bit, on real gloo groups of 1, 2 and 4 ranks."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.shard import ExpertShard
from router.dispatch import Dispatcher, ExpertChoice
from router.group import GroupDispatcher
from router.local import LocalDispatcher
from router.placement import Placement
from tests.router.test_all_to_all import EMPTY, EXPERTS, HIDDEN, TABLE, TOP_K, shard_of
from tests.router.thread_ranks import on_ranks, thread_groups

PLACEMENTS = {
    "1": Placement.even(EXPERTS, 1),
    "2": Placement.even(EXPERTS, 2),
    "4": Placement.even(EXPERTS, 4),
    "4, uneven": Placement.from_table(TABLE, 4),
    "4, one without": Placement.from_table((*(min(r, 2) for r in EMPTY[:5]), 3, 3, 2, 0, 2), 4),
}


@functools.cache
def groups(size: int) -> list[dist.ProcessGroup]:
    return thread_groups(size)


@functools.cache
def shards(name: str, dtype: torch.dtype) -> list[ExpertShard]:
    placement = PLACEMENTS[name]
    return [shard_of(placement.local_experts(rank), dtype) for rank in range(placement.num_ranks)]


def choices(draw: torch.Generator, num_rows: int, skew: str, num_live: int) -> ExpertChoice:
    scores = torch.rand(num_rows, EXPERTS, generator=draw)
    if skew == "one":
        scores[:, 3] += 1  # the best of every row is the same expert
    elif skew == "first":
        scores[:, :TOP_K] += 1  # every row to the same experts, which one rank holds
    ids = scores.argsort(1, descending=True)[:, :TOP_K].int().contiguous()
    ids[num_live:] = -1
    return ExpertChoice(ids=ids, weights=torch.rand(num_rows, TOP_K, generator=draw), is_padded=True)


def through(
    dispatcher: Dispatcher, shard: ExpertShard, hidden: torch.Tensor, choice: ExpertChoice
) -> tuple[torch.Tensor, torch.Tensor]:
    handle, rows = dispatcher.dispatch(hidden, choice)
    answers = shard(rows, handle.counts)
    answers[int(handle.counts.sum()) :] = float("nan")  # what nobody asked for may be anything
    return dispatcher.combine(answers, handle).combined(), handle.counts


@pytest.mark.parametrize("name", PLACEMENTS)
@settings(max_examples=50, deadline=None)
@given(
    num_rows=st.integers(0, 9),
    live=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    skew=st.sampled_from(["none", "one", "first"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10_000),
)
def test_every_routing_comes_out_as_on_one_rank(
    name: str, num_rows: int, live: list[int], skew: str, dtype: torch.dtype, seed: int
) -> None:
    placement = PLACEMENTS[name]
    num_live = [min(count, num_rows) for count in live]
    draw = torch.Generator().manual_seed(seed)
    brought = [
        (torch.randn(num_rows, HIDDEN, generator=draw).to(dtype), choices(draw, num_rows, skew, num_live[rank]))
        for rank in range(placement.num_ranks)
    ]

    members, held = groups(placement.num_ranks), shards(name, dtype)

    def one(rank: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        dispatcher = GroupDispatcher(placement, rank, members[rank])
        out, counts = through(dispatcher, held[rank], *brought[rank])
        assert dispatcher.collectives.total == 2
        return out, counts, dispatcher.load.snapshot()

    results = on_ranks(placement.num_ranks, one)
    whole = shards("1", dtype)[0]
    asked = torch.zeros(EXPERTS, dtype=torch.int64)
    for rank, (hidden, choice) in enumerate(brought):
        local = LocalDispatcher(EXPERTS)
        truth, counts = through(local, whole, hidden, choice)
        out, _, load = results[rank]
        assert torch.equal(out, truth), f"rank {rank}"
        assert not out[num_live[rank] :].any(), f"rank {rank} computed its padding"
        assert load == local.load.snapshot() == tuple(counts.tolist())
        plain = replace(choice, ids=choice.ids[: num_live[rank]].contiguous(), weights=choice.weights[: num_live[rank]])
        alone, _ = through(LocalDispatcher(EXPERTS), whole, hidden[: num_live[rank]].contiguous(), plain)
        assert torch.equal(out[: num_live[rank]], alone), f"rank {rank}: padding changed a row"
        asked += counts
    computed = torch.zeros(EXPERTS, dtype=torch.int64)
    for rank, (_, counts, _) in enumerate(results):
        computed[list(placement.local_experts(rank))] += counts
    assert torch.equal(computed, asked), "a copy was dropped, or computed twice"


def test_steps_that_are_not_padded_go_with_exact_splits() -> None:
    """Ranks then bring different numbers of rows, and nobody may wait for a size that was never agreed."""
    placement, draw = PLACEMENTS["2"], torch.Generator().manual_seed(0)
    brought = [
        (torch.randn(n, HIDDEN, generator=draw), replace(choices(draw, n, "none", n), is_padded=False)) for n in (5, 2)
    ]

    members, held = groups(2), shards("2", torch.float32)

    def one(rank: int) -> torch.Tensor:
        dispatcher = GroupDispatcher(placement, rank, members[rank])
        out, _ = through(dispatcher, held[rank], *brought[rank])
        assert dispatcher.collectives.total == 3
        return out

    for out, (hidden, choice) in zip(on_ranks(2, one), brought, strict=True):
        assert torch.equal(out, through(LocalDispatcher(EXPERTS), shards("1", torch.float32)[0], hidden, choice)[0])
