"""The executor over Ray: the contract, and what only actors can suffer."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.executor import Executor, GroupStartError
from cluster.ray_executor import Placing, RayExecutor
from cluster.ray_session import LOCAL, RaySession
from tests.cluster.executor_contract import DEADLINE_S, ExecutorContract, a_request, started, tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    session = RaySession(LOCAL, namespace="sigmoe-tests")
    session.start(num_cpus=4)
    yield
    session.stop()


def executor(num_ranks: int = 2, **changes: object) -> RayExecutor:
    config = dataclasses.replace(tiny_config(), group_size=num_ranks, **changes)  # type: ignore[arg-type]
    return RayExecutor(config, Placing())


class TestTwoRanks(ExecutorContract):
    num_ranks = 2

    @classmethod
    def make(cls) -> Executor:
        return executor(num_ranks=2)


@pytest.mark.chaos
async def test_a_killed_rank_is_lost_and_takes_its_group_along() -> None:
    ranks = executor()
    async with started(ranks) as group:
        pids = [rank.pid for rank in (await ranks.status()).ranks]
        await ranks.submit(0, a_request("running", max_tokens=50))
        os.kill(pids[1], signal.SIGKILL)
        lost: dict[int, str] = {}
        async with asyncio.timeout(DEADLINE_S):
            while len(lost) < 2:
                event = await anext(group.events)
                if event.lost:
                    lost[event.rank] = event.lost
        assert lost[1].startswith("rank 1: ")
        await ranks.submit(1, a_request("too late"))
        await ranks.cancel(1, "too late")
        assert not any(rank.is_alive for rank in (await ranks.status()).ranks)


async def test_a_missing_checkpoint_fails_the_start_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(GroupStartError, match=r"rank \d did not start: .*nowhere"):
        async with started(executor(model_dir=str(tmp_path / "nowhere"))):
            pytest.fail("it started")
