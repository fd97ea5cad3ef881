"""Replicas that come and go on machines that come and go: Ray's real autoscaler over its fake multi-node provider."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.fake_cluster import FakeCluster, fake_cluster
from engine.build import build_engine
from sigmoe import AsyncClient, Cluster, FleetEvent, Sampling
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.cluster.executor_contract import a_request, tiny_config, tokens
from tests.cluster.serve_command import DEADLINE_S, Server, serving

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_CLIENTS = 10
MAX_TOKENS = 200
PROMPTS = [tuple(range(number, number + 6)) for number in range(3, 40, 4)]
SETTINGS = (
    *("cluster.ranks=1", "cluster.device=cpu", "cluster.rank_resource=H20", "engine.max_sequences=2"),
    *("scaling.min_replicas=0", "scaling.max_replicas=2", "scaling.target_queue_s=0.2", "scaling.up_after_s=1"),
    *("scaling.down_after_s=3", "scaling.cool_down_s=2", "scaling.idle_to_zero_s=7"),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_config().model_dir, tmp_path / "model"))
    write_tokenizer_files(folder)
    return folder


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    """What a single process says to each prompt."""
    engine = build_engine(dataclasses.replace(tiny_config(), max_context=None, num_blocks=512))
    answers = []
    for number, prompt in enumerate(PROMPTS):
        engine.add(a_request(str(number), prompt=prompt, max_tokens=MAX_TOKENS))
        deltas = []
        while engine.has_work:
            deltas += engine.step()
        answers.append(tokens(deltas))
    return answers


@contextmanager
def elastic(model: Path) -> Iterator[tuple[FakeCluster, Server]]:
    """A cluster of a head alone at first, and a server whose replicas need a machine each."""
    # Ray counts a machine's idle time from its first second: 2 s were up before the replica's ranks had come to it.
    with fake_cluster(cpus_per_node=1, max_nodes=3, idle_s=8.0) as cluster:
        options = [word for setting in (f"cluster.address={cluster.address}", *SETTINGS) for word in ("--set", setting)]
        with serving(model, *options, environment=cluster.environment) as server:
            yield cluster, server


class Load:
    """Clients that ask again and again, with pauses of random length, and check every answer."""

    def __init__(self, client: AsyncClient, expected: list[tuple[int, ...]]) -> None:
        self.num_answers = 0
        self._client = client
        self._expected = expected
        self._is_over = False

    async def ask(self, number: int) -> None:
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
        done = await self._client.generate(PROMPTS[number], sampling, return_token_ids=True).result()
        assert done.choices[0].token_ids == self._expected[number], f"prompt {number}"
        self.num_answers += 1

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(NUM_CLIENTS):
                clients.create_task(self._ask_again(random.Random(number)))

    def end(self) -> None:
        self._is_over = True

    async def _ask_again(self, draw: random.Random) -> None:
        while not self._is_over:
            await self.ask(draw.randrange(len(PROMPTS)))
            await asyncio.sleep(draw.uniform(0.0, 0.2))  # a load that is noisy


async def until(client: AsyncClient, condition: Callable[[Cluster], bool]) -> Cluster:
    async with asyncio.timeout(DEADLINE_S):
        while not condition(cluster := await client.cluster()):
            await asyncio.sleep(0.1)
    return cluster


async def seen(client: AsyncClient, kind: str, replica: int, after_id: int = 0) -> FleetEvent:
    async with asyncio.timeout(DEADLINE_S):
        async for event in client.events(after_id=after_id, follow=True):
            if (event.kind, event.replica) == (kind, replica):
                return event
    raise AssertionError("the journal ended")


async def raylets(cluster: FakeCluster, is_right: Callable[[int], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_right(cluster.num_raylets()):
            await asyncio.sleep(0.2)


async def test_machines_and_replicas_follow_the_load_and_no_request_is_lost(
    model: Path, expected: list[tuple[int, ...]]
) -> None:
    with elastic(model) as (cluster, server):
        async with AsyncClient(f"127.0.0.1:{server.port}", timeout_s=DEADLINE_S) as client:
            assert cluster.num_raylets() >= 2, "the head and the first replica's machine"
            load = Load(client, expected)
            running = asyncio.create_task(load.run())
            grown = await seen(client, "serving", replica=1)
            assert cluster.num_raylets() >= 3
            # More sequences run at the same time than one replica has places for: the throughput has risen.
            wide = await until(client, lambda now: sum(rank.running_sequences for rank in now.ranks) > 2)
            assert {rank.replica for rank in wide.ranks if rank.generated_tokens} == {0, 1}
            load.end()
            await running
            await seen(client, "removed", replica=1)
            last = await seen(client, "removed", replica=0)
            await raylets(cluster, lambda number: number == 1)
            # None serves: the next request waits for a machine, a replica, and its answer.
            await load.ask(0)
            await seen(client, "serving", replica=0, after_id=last.id)
            assert load.num_answers > NUM_CLIENTS
            told = [event async for event in client.events()]
            state = await client.cluster()
    assert not cluster.processes(), "Ray was left running"
    assert grown.numbers["seconds"] > 0
    assert [event.numbers["wanted"] for event in told if event.kind == "scale"][:4] == [2, 1, 0, 1], told
    assert all(event.reason for event in told if event.kind == "scale")
    second = [event for event in told if event.replica == 1]
    expected_kinds = ["starting", "serving", "draining", "drained", "removed"]
    assert [event.kind for event in second] == expected_kinds, second
    assert state.gateway.ended_requests == {"OK": load.num_answers}
