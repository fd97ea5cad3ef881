"""The executor without Ray: the contract in one thread and in two processes, and what only processes can suffer."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from cluster.executor import Executor, GroupStartError, RankEvents
from cluster.local_executor import LocalExecutor
from tests.cluster.executor_contract import DEADLINE_S, ExecutorContract, a_request, started, tiny_config


class TestOneRankInThisProcess(ExecutorContract):
    num_ranks = 1

    @classmethod
    def make(cls) -> Executor:
        return LocalExecutor(tiny_config(), num_ranks=1)


class TestTwoRanksInProcesses(ExecutorContract):
    num_ranks = 2

    @classmethod
    def make(cls) -> Executor:
        return LocalExecutor(tiny_config(), num_ranks=2)


async def _losses(executor: LocalExecutor, number: int) -> dict[int, str]:
    lost: dict[int, str] = {}
    async with asyncio.timeout(DEADLINE_S):
        async for events in executor.events():
            if events.lost:
                lost[events.rank] = events.lost
            if len(lost) == number:
                break
    return lost


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("victim", [0, 1])  # 0 takes the group's store along
async def test_a_killed_process_is_lost_and_takes_its_group_along(victim: int) -> None:
    executor = LocalExecutor(tiny_config(), num_ranks=2)
    async with started(executor):
        pids = [rank.pid for rank in (await executor.status()).ranks]
        await executor.submit(1 - victim, a_request("running", max_tokens=50))
        os.kill(pids[victim], signal.SIGKILL)
        lost = await _losses(executor, 2)
        assert set(lost) == {0, 1}
        assert "ended by signal 9" in lost[victim] or victim not in lost
        await executor.submit(victim, a_request("too late"))
        await executor.cancel(victim, "too late")
        status = await executor.status()
        assert not any(rank.is_alive for rank in status.ranks)
    assert all(_is_gone(pid) for pid in pids)


@pytest.mark.slow
@pytest.mark.chaos
async def test_a_frozen_rank_is_ended_by_force() -> None:
    executor = LocalExecutor(tiny_config(), num_ranks=2, stop_grace_s=0.5)
    async with started(executor):
        pids = [rank.pid for rank in (await executor.status()).ranks]
        os.kill(pids[1], signal.SIGSTOP)
    assert all(_is_gone(pid) for pid in pids)


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_a_missing_checkpoint_fails_the_start_with_its_path(num_ranks: int, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(), model_dir=str(tmp_path / "nowhere"))
    executor = LocalExecutor(config, num_ranks=num_ranks)
    with pytest.raises(GroupStartError, match=r"rank \d did not start: .*nowhere"):
        async with started(executor):
            pytest.fail("it started")


async def test_no_memory_for_the_kv_cache_fails_the_start_with_both_numbers() -> None:
    executor = LocalExecutor(dataclasses.replace(tiny_config(), num_blocks=10**12), num_ranks=1)
    with pytest.raises(GroupStartError, match=r"KV cache needs .* GiB .* are free"):
        async with started(executor):
            pytest.fail("it started")


async def test_stopping_before_starting_is_harmless() -> None:
    executor = LocalExecutor(tiny_config(), num_ranks=1)
    await executor.stop()
    assert [events async for events in executor.events()] == []


async def test_a_start_that_is_abandoned_leaves_nothing() -> None:
    executor = LocalExecutor(tiny_config(), num_ranks=1)
    progress = executor.start()
    async for _ in progress:
        break
    await executor.stop()
    async with asyncio.timeout(DEADLINE_S):
        rest = [events async for events in executor.events()]
    assert all(isinstance(events, RankEvents) for events in rest)
