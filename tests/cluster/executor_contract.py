"""What every executor must do, whoever starts its ranks.

A test module subclasses `ExecutorContract` and says how to make an executor of `num_ranks` ranks with the settings of
`tiny_config`. Starting ranks is slow, so most tests of a class share one started group, with request ids of their own.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio

from cluster.executor import Executor, LoadProgress, RankEvents
from engine.build import build_engine
from engine.config import EngineConfig, Precision
from scheduler.request import FinishReason, Request, SamplingParams, TokenDelta
from tests.engine.checkpoints import tiny_checkpoint

DEADLINE_S = 60.0  # of whatever a test waits for: only a broken program gets there
SHAPE = "A"
MAX_CONTEXT = 64


def tiny_config() -> EngineConfig:
    return EngineConfig(
        model_dir=str(tiny_checkpoint(SHAPE)),
        precision=Precision.FP32,
        device="cpu",
        num_blocks=64,
        block_size=4,
        max_rows_per_step=32,
        max_sequences=8,
        max_context=MAX_CONTEXT,
        num_threads=1,
        group_timeout_s=60.0,
    )


def a_request(request_id: str, max_tokens: int = 6, **changes: object) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    request = Request(request_id=request_id, prompt=tuple(range(3, 12)), sampling=sampling)
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def in_process(requests: list[Request]) -> dict[str, list[TokenDelta]]:
    """What the requests must yield: the engine of a single process, each alone."""
    engine = build_engine(tiny_config())
    deltas: dict[str, list[TokenDelta]] = {}
    for request in requests:
        engine.add(request)
        deltas[request.request_id] = []
        while engine.has_work:
            deltas[request.request_id] += engine.step()
    return deltas


def tokens(deltas: list[TokenDelta], sequence_index: int = 0) -> tuple[int, ...]:
    return tuple(t for delta in deltas if delta.sequence_index == sequence_index for t in delta.token_ids)


def endings(deltas: list[TokenDelta]) -> list[FinishReason]:
    return [delta.finish_reason for delta in deltas if delta.finish_reason is not None]


def logprobs(deltas: list[TokenDelta]) -> list[float]:
    """Every log-probability told, the most likely tokens' included."""
    scores = [score for delta in deltas for score in (*delta.prompt_logprobs, *delta.logprobs)]
    return [value for score in scores for value in (score.logprob, *(lp for _, lp in score.top))]


@dataclass
class Group:
    """A started executor, what its start said, and the one stream of its events."""

    executor: Executor
    progress: list[LoadProgress]
    events: AsyncIterator[RankEvents]

    async def collect(self, endings: dict[str, int]) -> dict[str, list[TokenDelta]]:
        """Read events until each request has had its number of endings."""
        deltas: dict[str, list[TokenDelta]] = {request_id: [] for request_id in endings}
        left = dict(endings)
        async with asyncio.timeout(DEADLINE_S):
            while any(left.values()):
                events = await anext(self.events)
                assert not events.lost, f"rank {events.rank} was lost: {events.lost}"
                for delta in events.deltas:
                    deltas[delta.request_id].append(delta)
                    left[delta.request_id] -= delta.finish_reason is not None
        return deltas


@asynccontextmanager
async def started(executor: Executor) -> AsyncIterator[Group]:
    """The executor serves within; afterwards it is stopped, come what may."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            progress = [step async for step in executor.start()]
        yield Group(executor, progress, executor.events())
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await executor.stop()


@pytest.mark.asyncio(loop_scope="class")
class ExecutorContract:
    """Subclassed by the tests of each executor."""

    num_ranks: int

    @classmethod
    def make(cls) -> Executor:
        """An executor that has not been started."""
        raise NotImplementedError

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def group(cls) -> AsyncIterator[Group]:
        async with started(cls.make()) as group:
            yield group

    async def test_start_reports_each_ranks_progress(self, group: Group) -> None:
        for rank in range(self.num_ranks):
            steps = [step for step in group.progress if step.rank == rank]
            assert list(dict.fromkeys(step.stage for step in steps)) == ["starting", "loading", "warming", "ready"]
            loading = [step for step in steps if step.stage == "loading"]
            assert loading[-1].done_bytes == loading[-1].total_bytes > 0
            assert [step.done_bytes for step in loading] == sorted(step.done_bytes for step in loading)

    async def test_the_started_group_is_known(self, group: Group) -> None:
        info, status = group.executor.info(), await group.executor.status()
        assert (info.num_ranks, info.max_context, info.vocab_size) == (self.num_ranks, MAX_CONTEXT, 512)
        assert info.kv_tokens_per_rank == 64 * 4
        assert [rank.rank for rank in status.ranks] == list(range(self.num_ranks))
        assert all(rank.is_alive and rank.device == "cpu" and rank.pid > 0 and rank.kernels for rank in status.ranks)
        assert sorted(expert for rank in status.ranks for expert in rank.experts) == list(range(8))
        assert all(rank.weight_bytes > 0 and rank.kv_bytes > 0 for rank in status.ranks)

    async def test_each_rank_answers_as_a_single_process_does(self, group: Group) -> None:
        requests = [
            a_request("greedy"),
            a_request("long", max_tokens=20, prompt=tuple(range(100, 140))),
            a_request("drawn", sampling=SamplingParams(max_tokens=8, seed=5, top_p=0.9, num_logprobs=2)),
            a_request("scored", sampling=SamplingParams(max_tokens=2, temperature=0.0, num_prompt_logprobs=1)),
            a_request("two", num_sequences=2, sampling=SamplingParams(max_tokens=5, seed=9, ignore_eos=True)),
        ]
        expected = in_process(requests)
        before = await group.executor.status()
        for number, request in enumerate(requests):
            await group.executor.submit(number % self.num_ranks, request)
        deltas = await group.collect({r.request_id: r.num_sequences for r in requests})
        after = await group.executor.status()
        for request in requests:
            got, want = deltas[request.request_id], expected[request.request_id]
            for index in range(request.num_sequences):
                assert tokens(got, index) == tokens(want, index), f"{request.request_id}, sequence {index}"
            assert endings(got) == endings(want)
        assert logprobs(deltas["drawn"]) == pytest.approx(logprobs(expected["drawn"]), abs=1e-4)
        assert logprobs(deltas["scored"]) == pytest.approx(logprobs(expected["scored"]), abs=1e-4)
        assert len(logprobs(deltas["scored"])) == 8 * 2
        num_tokens = sum(len(tokens(deltas[r.request_id], i)) for r in requests for i in range(r.num_sequences))
        assert (
            sum(rank.num_tokens for rank in after.ranks) - sum(rank.num_tokens for rank in before.ranks) == num_tokens
        )
        assert sum(sum(rank.expert_tokens) for rank in after.ranks) > 0

    async def test_a_cancelled_request_ends_at_once(self, group: Group) -> None:
        await group.executor.submit(0, a_request("a", max_tokens=50))
        await group.executor.cancel(0, "a")
        await group.executor.cancel(0, "never heard of")
        deltas = await group.collect({"a": 1})
        assert deltas["a"][-1].finish_reason is FinishReason.CANCELLED
        assert len(tokens(deltas["a"])) < 50

    async def test_a_deadline_is_relative_to_submission(self, group: Group) -> None:
        await group.executor.submit(0, a_request("late", max_tokens=50, deadline_s=0.0))
        await group.executor.submit(0, a_request("in time", deadline_s=DEADLINE_S))
        deltas = await group.collect({"late": 1, "in time": 1})
        assert deltas["late"][-1].finish_reason is FinishReason.DEADLINE
        assert deltas["in time"][-1].finish_reason is FinishReason.LENGTH

    async def test_an_impossible_request_ends_with_the_field_at_fault(self, group: Group) -> None:
        await group.executor.submit(0, a_request("too long", prompt=(1,) * (MAX_CONTEXT + 1)))
        await group.executor.submit(0, a_request("strange", prompt=(512,)))
        await group.executor.submit(0, a_request("good"))
        deltas = await group.collect({"too long": 1, "strange": 1, "good": 1})
        for name in ("too long", "strange"):
            assert deltas[name][-1].finish_reason is FinishReason.ERROR
            assert deltas[name][-1].error.startswith("prompt: ")
        assert len(tokens(deltas["good"])) == 6

    async def test_events_end_with_the_group_and_stop_may_be_repeated(self) -> None:
        async with started(self.make()) as group:
            await group.executor.stop()
            async with asyncio.timeout(DEADLINE_S):
                assert {events.rank async for events in group.events} <= set(range(self.num_ranks))
            await group.executor.stop()
            status = await group.executor.status()
            assert not any(rank.is_alive for rank in status.ranks)
