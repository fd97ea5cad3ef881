"""From the client's SDK to a real model and back: what is streamed is what the engine alone computes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.gateway import Gateway
from cluster.gateway_config import GatewayConfig
from cluster.local_executor import LocalExecutor
from engine.build import build_engine
from engine.config import EngineConfig
from scheduler.request import Request, SamplingParams
from sigmoe import AsyncClient, InvalidRequest, RetryPolicy, Sampling, Unavailable
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.cluster.executor_contract import MAX_CONTEXT, tiny_config

PROMPT = list(range(10, 20))
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    """The tiny model of the executors' tests, with a tokenizer."""
    config = tiny_config()
    folder = Path(shutil.copytree(config.model_dir, tmp_path / "model"))
    write_tokenizer_files(folder)
    return dataclasses.replace(config, model_dir=str(folder))


@asynccontextmanager
async def serving(config: EngineConfig, num_ranks: int) -> AsyncIterator[tuple[AsyncClient, LocalExecutor]]:
    executor = LocalExecutor(config, num_ranks)
    gateway = Gateway(GatewayConfig(port=0, resume_timeout_s=0.1), executor, Path(config.model_dir))
    port = await gateway.listen()
    try:
        async for _ in executor.start():
            pass
        await gateway.serve()
        async with AsyncClient(f"127.0.0.1:{port}", timeout_s=60, retry=ONCE) as client:
            yield client, executor
    finally:
        await gateway.stop(grace_s=0.0)
        await executor.stop()


def in_process(config: EngineConfig, sampling: SamplingParams, num_sequences: int) -> list[tuple[int, ...]]:
    engine = build_engine(config)
    engine.add(Request(request_id="a", prompt=tuple(PROMPT), sampling=sampling, num_sequences=num_sequences))
    found: list[tuple[int, ...]] = [()] * num_sequences
    while engine.has_work:
        for delta in engine.step():
            found[delta.sequence_index] += delta.token_ids
    return found


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_streams_equal_the_engine_s_own_output(config: EngineConfig, num_ranks: int) -> None:
    ours = Sampling(max_tokens=20, temperature=0.75, top_p=0.875, top_k=0, seed=3, n=3, ignore_eos=True)
    params = SamplingParams(max_tokens=20, temperature=0.75, top_p=0.875, seed=3, ignore_eos=True)
    expected = in_process(config, params, num_sequences=3)
    async with serving(config, num_ranks) as (client, executor):
        completions = await asyncio.gather(
            *(client.generate(PROMPT, ours, return_token_ids=True).result() for _ in range(4))
        )
        for completion in completions:
            assert [choice.token_ids for choice in completion.choices] == expected
            for choice in completion.choices:
                whole = await client.detokenize(choice.token_ids, skip_special_tokens=True)
                assert whole.startswith(choice.text) and set(whole[len(choice.text) :]) <= {"\ufffd"}
        cluster = await client.cluster()
        assert [rank.state for rank in cluster.ranks] == ["serving"] * num_ranks
        assert cluster.gateway.streamed_tokens == 4 * 3 * 20
        assert (await client.model()).max_context == MAX_CONTEXT
        with pytest.raises(InvalidRequest, match=f"the context holds {MAX_CONTEXT}"):
            await client.generate([5] * MAX_CONTEXT).result()
        score = await client.score(PROMPT, top_logprobs=1)
        assert len(score.logprobs) == len(PROMPT) - 1
        assert all(rank.stats is not None and rank.stats.num_running == 0 for rank in (await executor.status()).ranks)


@pytest.mark.slow
@pytest.mark.chaos
async def test_a_killed_group_ends_its_streams_and_the_gateway_lives(config: EngineConfig) -> None:
    config = dataclasses.replace(config, max_context=1024, num_blocks=256)  # seconds of tokens
    async with serving(config, 2) as (client, executor):
        pids = [rank.pid for rank in (await executor.status()).ranks]
        stream = aiter(client.generate(PROMPT, Sampling(max_tokens=1000, ignore_eos=True)))
        await anext(stream)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(Unavailable):
            while True:
                await anext(stream)
        assert [rank.state for rank in (await client.cluster()).ranks] == ["lost", "lost"]
        with pytest.raises(Unavailable, match="no rank serves"):
            await client.generate(PROMPT).result()
        assert await client.detokenize([10, 11])
