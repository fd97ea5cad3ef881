"""GET /metrics, as Prometheus reads it."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.gateway import CannotListen, Gateway
from cluster.gateway_config import GatewayConfig
from cluster.metrics import families
from sigmoe import Sampling, messages
from sigmoe.v1 import admin_service_pb2, types_pb2
from tests.cluster.conftest import Start, World
from tests.cluster.grpc_calls import generate

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(world: World) -> Samples:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{world.gateway.metrics_port}/metrics"
        async with session.get(url) as response:
            assert response.status == 200
            text = await response.text()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def ask(world: World, sampling: Sampling) -> None:
    call = messages.generate_request("What is asthma?", sampling)
    async for _ in world.inference.Generate(call):
        pass


async def test_metrics_and_status_tell_the_same(start: Start) -> None:
    async with start(num_ranks=2, metrics_port=0) as world:
        sampling = Sampling(draft="ngram", max_drafts=2, max_tokens=20, temperature=0.0, ignore_eos=True)
        await asyncio.gather(*(ask(world, sampling) for _ in range(4)))
        await world.settled()
        samples = await scrape(world)
        cluster = messages.cluster(await world.admin.GetCluster(admin_service_pb2.GetClusterRequest()))
    assert samples["sigmoe_ended_requests_total", (("status", "OK"),)] == 4
    assert samples["sigmoe_streamed_tokens_total", ()] == cluster.gateway.streamed_tokens == 80
    assert len(cluster.ranks) == 2
    for rank in cluster.ranks:
        labels = (("rank", str(rank.rank)), ("replica", "0"))
        assert samples["sigmoe_rank_serving", (("device", rank.device), ("host", rank.host), *labels)] == 1
        assert samples["sigmoe_generated_tokens_total", labels] == rank.generated_tokens
        assert samples["sigmoe_kv_blocks", labels] == rank.kv_blocks > 0
        (looked_up,) = rank.drafting
        of_method = (("method", "ngram"), *labels)
        assert looked_up.drafts == rank.drafts and looked_up.state == "fixed"
        assert samples["sigmoe_draft_rounds_total", of_method] == rank.drafts.rounds > 0
        assert samples["sigmoe_draft_committed_tokens_total", of_method] == rank.drafts.committed_tokens
        assert samples["sigmoe_draft_length", of_method] == looked_up.length == 3
        assert samples["sigmoe_draft_cost_error_ratio", of_method] == looked_up.cost_error
        for name, counts in (("drafted", rank.drafts.drafted), ("accepted", rank.drafts.accepted)):
            for position, count in enumerate(counts, start=1):
                key = (f"sigmoe_{name}_tokens_total", tuple(sorted((*of_method, ("position", str(position))))))
                assert samples[key] == count
        states = {
            dict(key)["state"]: value for (name, key), value in samples.items() if name == "sigmoe_drafting_state"
        }
        assert states == {"fixed": 1} | dict.fromkeys(("off", "learning", "drafting", "resting", "broken"), 0)
        phases = [samples["sigmoe_step_seconds_total", (("phase", phase), *labels)] for phase in ("extend", "draft")]
        assert sum(phases) == pytest.approx(rank.draft_s)


def test_a_broken_head_and_a_resting_one_show_as_such() -> None:
    of_rank = [
        admin_service_pb2.DraftingStatus(method=method, state=state)
        for method, state in (
            (types_pb2.DRAFT_METHOD_EAGLE3, admin_service_pb2.DRAFTING_STATE_BROKEN),
            (types_pb2.DRAFT_METHOD_NGRAM, admin_service_pb2.DRAFTING_STATE_RESTING),
        )
    ]
    cluster = admin_service_pb2.GetClusterResponse(ranks=[admin_service_pb2.RankStatus(rank=3, drafting=of_rank)])
    (states,) = [family for family in families(cluster) if family.name == "sigmoe_drafting_state"]
    assert len(states.samples) == 2 * 6
    on = [sample.labels for sample in states.samples if sample.value]
    assert on == [
        {"replica": "0", "rank": "3", "method": "eagle3", "state": "broken"},
        {"replica": "0", "rank": "3", "method": "ngram", "state": "resting"},
    ]


async def test_latencies_are_counted_once_for_each_call_and_sequence(start: Start) -> None:
    async with start(metrics_port=0) as world:
        await ask(world, Sampling(max_tokens=5, temperature=1.0, ignore_eos=True, n=3))
        await world.settled()
        samples = await scrape(world)
    assert samples["sigmoe_time_to_first_token_seconds_count", ()] == 1
    assert samples["sigmoe_request_duration_seconds_count", ()] == 1
    assert samples["sigmoe_queue_seconds_count", ()] == 3
    assert samples["sigmoe_time_per_output_token_seconds_count", ()] == 3
    assert samples["sigmoe_request_output_tokens_sum", ()] == 15
    first, whole = (samples[f"sigmoe_{name}_seconds_sum", ()] for name in ("time_to_first_token", "request_duration"))
    assert 0 < first <= whole


async def test_refused_calls_leave_their_status_and_no_latency(start: Start) -> None:
    async with start(metrics_port=0) as world:
        with pytest.raises(Exception, match="max_tokens"):
            async for _ in world.inference.Generate(generate(max_tokens=-1)):
                pass
        samples = await scrape(world)
    assert samples["sigmoe_ended_requests_total", (("status", "INVALID_ARGUMENT"),)] == 1
    assert samples["sigmoe_time_to_first_token_seconds_count", ()] == 0


async def test_a_gateway_that_is_not_ready_says_so(start: Start) -> None:
    async with start() as world:
        waiting = Gateway(GatewayConfig(port=0, metrics_port=0), world.executor, world.gateway._model_dir)
        await waiting.listen()
        try:
            async with aiohttp.ClientSession() as session:
                site = f"http://127.0.0.1:{waiting.metrics_port}"
                async with session.get(f"{site}/healthz") as response:
                    assert (response.status, await response.text()) == (
                        503,
                        "the model is still loading; try again later\n",
                    )
                async with session.get(f"{site}/metrics") as response:
                    assert response.status == 200 and "sigmoe_queue_seconds_count 0" in await response.text()
                await waiting.serve()
                async with session.get(f"{site}/healthz") as response:
                    assert response.status == 200
        finally:
            await waiting.stop(grace_s=0.0)


async def test_a_port_in_use_is_named(start: Start) -> None:
    async with start(metrics_port=0) as world:
        config = GatewayConfig(port=0, metrics_port=world.gateway.metrics_port)
        other = Gateway(config, world.executor, world.gateway._model_dir)
        with pytest.raises(CannotListen, match=r"gateway\.metrics_port"):
            await other.listen()
