"""The shipped model with its draft head, through the gateway: where a stop string ends inside a round."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.gateway import Gateway
from cluster.gateway_config import GatewayConfig
from cluster.local_executor import LocalExecutor
from engine.config import EngineConfig, Precision, SpeculationConfig
from scheduler.request import DraftMethod
from sigmoe import AsyncClient, Choice, Sampling

MODEL = Path(__file__).parents[2] / "models" / "sigmoe-demo"
QUESTION = [{"role": "user", "content": "What is asthma?"}]
NUM_DRAFTS = 3


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    speculation = SpeculationConfig(method=DraftMethod.EAGLE3, max_drafts=NUM_DRAFTS, adaptive=False)
    config = EngineConfig(
        model_dir=str(MODEL),
        precision=Precision.FP32,
        max_context=512,
        num_threads=1,
        prefix_cache=False,  # or drafts would lack the draft model's part of what plain answers left there
        speculation=speculation,
    )
    executor = LocalExecutor(config, 1)
    gateway = Gateway(GatewayConfig(port=0), executor, MODEL)
    port = await gateway.listen()
    try:
        async for _ in executor.start():
            pass
        await gateway.serve()
        async with AsyncClient(f"127.0.0.1:{port}", timeout_s=60) as connected:
            yield connected
    finally:
        await gateway.stop(grace_s=0.0)
        await executor.stop()


async def told(client: AsyncClient, draft: str, *stop: str) -> Choice:
    asked = Sampling(max_tokens=40, temperature=0.0, draft=draft, stop=stop)
    completion = await client.chat(QUESTION, asked, return_token_ids=True).result()
    return completion.choices[0]


async def test_a_stop_string_inside_accepted_drafts_changes_nothing_else(client: AsyncClient) -> None:
    whole = await told(client, "off")
    drafted = await told(client, "eagle3")
    assert (drafted.text, drafted.token_ids) == (whole.text, whole.token_ids)
    num_cut = 0
    for place in range(20, len(whole.text) - 4, len(whole.text) // 9):
        stop = whole.text[place : place + 4]
        plain, drafted = await told(client, "off", stop), await told(client, "eagle3", stop)
        assert (plain.finish_reason, drafted.finish_reason) == ("stop", "stop") and stop not in plain.text
        assert (drafted.text, drafted.token_ids) == (plain.text, plain.token_ids)
        before, after = plain.usage, drafted.usage
        assert before is not None and after is not None and before.drafts is None and after.drafts is not None
        assert (after.prompt_tokens, after.output_tokens) == (before.prompt_tokens, before.output_tokens)
        assert after.output_tokens == len(drafted.token_ids)
        counts, num_accepted = after.drafts, sum(after.drafts.accepted)
        assert num_accepted > 0, "the head is good enough for that"
        assert counts.rounds <= counts.committed_tokens < after.output_tokens
        assert sum(counts.rounds_by_length) == counts.rounds
        num_cut += counts.committed_tokens < counts.rounds + num_accepted
        assert (after.draft_method, after.draft_reason) == ("eagle3", f"k={NUM_DRAFTS}: fixed")
        assert (before.draft_method, before.draft_reason) == ("off", "")
        assert after.forward_s > 0.0 and after.sample_s > 0.0 and after.draft_s >= after.extend_s > 0.0
        assert before.forward_s > 0.0 and before.draft_s < after.draft_s
    assert num_cut > 0, "some of them end inside the accepted drafts of a round"
    (rank,) = (await client.cluster()).ranks
    assert [(one.method, one.state) for one in rank.drafting] == [("eagle3", "fixed")]
