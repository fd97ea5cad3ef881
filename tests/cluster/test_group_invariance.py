"""Invariant 1 across processes: the size of the expert-parallel group changes no token."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from cluster.local_executor import LocalExecutor
from scheduler.request import Request, TokenDelta
from tests.cluster.executor_contract import DEADLINE_S, Group, started, tiny_config
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.mixed_requests import Outcome, alone, mixed_requests, outcome_of

pytestmark = pytest.mark.slow


async def _run(group: Group, placed: list[tuple[int, Request]]) -> Outcome:
    for rank, request in placed:
        await group.executor.submit(rank, request)
    deltas = await group.collect({request.request_id: request.num_sequences for _, request in placed})
    everything: list[TokenDelta] = [delta for of_request in deltas.values() for delta in of_request]
    return outcome_of(everything)


# 64 experts on 4 ranks; 16 experts on 3, which do not divide them.
@pytest.mark.parametrize(("shape", "num_ranks"), [("B", 2), ("B", 3), ("G", 4)])
async def test_the_group_does_not_matter(shape: str, num_ranks: int) -> None:
    config = dataclasses.replace(tiny_config(), model_dir=str(tiny_checkpoint(shape)), num_blocks=256, max_context=128)
    async with started(LocalExecutor(config, num_ranks)) as group:
        requests = mixed_requests()
        spread = [(number % num_ranks, request) for number, request in enumerate(requests)]
        assert await _run(group, spread) == alone(shape), "spread over all ranks"
        last = [(num_ranks - 1, request) for request in requests]
        assert await _run(group, last) == alone(shape), "on one rank, the others idle, prefixes partly cached"
        steps = [rank.num_steps for rank in (await group.executor.status()).ranks]
    assert max(steps) - min(steps) <= 1, f"more than the step under way tells the ranks apart: {steps}"


async def test_requests_that_come_and_go_on_all_ranks_do_not_matter() -> None:
    """The group falls asleep and wakes between requests, while other ranks start and finish theirs."""
    config = dataclasses.replace(tiny_config(), model_dir=str(tiny_checkpoint("B")), num_blocks=256, max_context=128)
    async with started(LocalExecutor(config, num_ranks=2)) as group:
        outcome: Outcome = {}
        for number, request in enumerate(mixed_requests()):
            async with asyncio.timeout(DEADLINE_S):
                outcome |= await _run(group, [(number % 2, request)])
        assert outcome == alone("B")
