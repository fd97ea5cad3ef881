"""Ranks for tests: engines that compute with the simulated runner, alone or as a group of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from engine.engine import Engine
from engine.lockstep import GroupLockstep, GroupStep, LocalLockstep, Lockstep, StepNeeds, host_store
from engine.rank import Rank, RankFacts, RankLost
from engine.runner import Runner
from engine.simulated_runner import SimulatedRunner
from scheduler.request import FinishReason, Request, SamplingParams, TokenDelta
from scheduler.scheduler import Scheduler, SchedulerConfig

DEADLINE_S = 30.0  # of whatever a test waits for: only a broken program gets there
BLOCK_SIZE = 4
CONFIG = SchedulerConfig(
    num_blocks=64, block_size=BLOCK_SIZE, max_rows_per_step=32, max_sequences=8, max_context=128, max_waiting=64
)


def greedy(request_id: str, max_tokens: int = 5, prompt: tuple[int, ...] = (1, 2, 3)) -> Request:
    return Request(
        request_id=request_id, prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0)
    )


class Clock:
    """Time that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_rank(lockstep: Lockstep, runner: Runner | None = None, clock: Clock | None = None, number: int = 0) -> Rank:
    clock = clock or Clock()
    engine = Engine(Scheduler(CONFIG, clock), runner or SimulatedRunner(block_size=BLOCK_SIZE))
    return Rank(engine, lockstep, RankFacts(rank=number), clock=clock)


@contextmanager
def running(rank: Rank) -> Iterator[Rank]:
    """Give the rank its thread; it must have ended by itself or by `stop` at the end."""
    thread = threading.Thread(target=rank.run, name="rank")
    thread.start()
    try:
        yield rank
    finally:
        rank.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the rank's loop did not end"


@contextmanager
def one_rank(runner: Runner | None = None, clock: Clock | None = None) -> Iterator[Rank]:
    with running(make_rank(LocalLockstep(), runner, clock)) as rank:
        yield rank


class CountingGroupLockstep(GroupLockstep):
    """Counts turns, and lets a test wait until the loop goes to sleep."""

    def __init__(self, group: dist.ProcessGroup, store: TCPStore, epoch: int = 0) -> None:
        super().__init__(group, store, epoch)
        self.num_turns = 0
        self.asleep = threading.Semaphore(0)

    def agree(self, needs: StepNeeds) -> GroupStep:
        self.num_turns += 1
        return super().agree(needs)

    def sleep(self) -> None:
        self.asleep.release()
        super().sleep()


def group_locksteps(size: int) -> list[CountingGroupLockstep]:
    """Gloo ranks that are threads of this process."""
    store = host_store("127.0.0.1")
    groups: dict[int, Any] = {}

    def join(number: int) -> None:
        own = PrefixStore("group", store.clone())  # type: ignore[attr-defined]
        groups[number] = dist.ProcessGroupGloo(own, number, size, timedelta(seconds=DEADLINE_S))

    threads = [threading.Thread(target=join, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return [CountingGroupLockstep(groups[number], store) for number in range(size)]


@contextmanager
def group_of_ranks(size: int, runners: list[Runner] | None = None) -> Iterator[list[Rank]]:
    locksteps = group_locksteps(size)
    with ExitStack() as stack:
        ranks = [make_rank(ls, runners[n] if runners else None, number=n) for n, ls in enumerate(locksteps)]
        yield [stack.enter_context(running(rank)) for rank in ranks]


def collect(rank: Rank, request_ids: set[str]) -> dict[str, list[TokenDelta]]:
    """Poll until every named request has a finish reason."""
    deltas: dict[str, list[TokenDelta]] = {request_id: [] for request_id in request_ids}
    unfinished = set(request_ids)
    while unfinished:
        polled = rank.poll(DEADLINE_S)
        assert polled, f"nothing came for {sorted(unfinished)}"
        for delta in polled:
            deltas[delta.request_id].append(delta)
            if delta.finish_reason is not None:
                unfinished.discard(delta.request_id)
    return deltas


def tokens(deltas: list[TokenDelta]) -> tuple[int, ...]:
    return tuple(token_id for delta in deltas for token_id in delta.token_ids)


def ending(deltas: list[TokenDelta]) -> FinishReason | None:
    return deltas[-1].finish_reason


def reason_of_end(rank: Rank) -> str:
    """Poll until the rank says that it has ended."""
    try:
        while rank.poll(DEADLINE_S):
            pass
    except RankLost as end:
        return end.reason
    raise AssertionError("the rank neither ended nor said anything")
