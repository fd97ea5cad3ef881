"""Looks at a server of several replicas, whose ranks have the same numbers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

from sigmoe.loadtest.sampler import ServerSampler
from sigmoe.results import Cluster
from tests.sigmoe.loadtest.levels import cluster


async def test_ranks_of_two_replicas_are_not_mixed_up() -> None:
    looked = asyncio.Event()
    rows = iter([(100, 1000), (150, 1010), (150, 1010)])  # by replica, each rank of its own

    async def look() -> Cluster:
        counts = next(rows, None)
        if counts is None:
            looked.set()
            await asyncio.Event().wait()
        assert counts is not None
        parts = [cluster(1, [count, 0]).ranks[0] for count in counts]
        ranks = tuple(dataclasses.replace(rank, replica=number) for number, rank in enumerate(parts))
        return dataclasses.replace(cluster(1, [0, 0]), ranks=ranks)

    sampler = ServerSampler(look, lambda: 0.0, 0.0)
    task = asyncio.create_task(sampler.run())
    await asyncio.wait_for(looked.wait(), 10.0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert [sample.expert_tokens for sample in sampler.samples] == [(), (60, 0), (0, 0)]
    assert [rank.key for rank in sampler.samples[-1].ranks] == [(0, 0), (1, 0)]
