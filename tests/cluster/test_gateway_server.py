"""The gateway over real gRPC and simulated ranks: what operators see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.gateway import CannotListen, Gateway
from cluster.gateway_config import GatewayConfig
from model.errors import CheckpointError
from sigmoe import AsyncClient
from sigmoe.errors import Unavailable
from sigmoe.v1 import admin_service_pb2, inference_service_pb2_grpc
from sigmoe.v1 import inference_service_pb2 as pb
from tests.cluster.checkpoint_folder import END, ROLE_END
from tests.cluster.conftest import Start, World
from tests.cluster.grpc_calls import answers, failure, generate
from tests.cluster.simulated_executor import SimulatedExecutor


async def test_model_facts(world: World) -> None:
    facts = await world.inference.GetModel(pb.GetModelRequest())
    assert (facts.name, facts.architecture) == ("tiny", "BailingMoeV2ForCausalLM")
    assert (facts.vocab_size, facts.max_context, facts.num_layers) == (512, 128, 4)
    assert (facts.num_experts, facts.num_experts_per_token, facts.dtype) == (16, 4, "bfloat16")
    assert list(facts.eos_token_ids) == [END, ROLE_END]
    assert facts.default_sampling.temperature == 0.5
    assert facts.uptime.ToTimedelta().total_seconds() > 0


async def test_the_cluster_as_operators_see_it(start: Start) -> None:
    async with start(num_ranks=2, max_requests=7) as world:
        await answers(world.inference.Generate(generate()))
        await failure(world.inference.Generate(generate(n=-1)))
        cluster = await world.admin.GetCluster(admin_service_pb2.GetClusterRequest())
    assert [(rank.rank, rank.state) for rank in cluster.ranks] == [
        (0, admin_service_pb2.RANK_STATE_SERVING),
        (1, admin_service_pb2.RANK_STATE_SERVING),
    ]
    assert cluster.ranks[0].kv_blocks == cluster.ranks[0].kv_blocks_free == 512
    assert (cluster.gateway.active_requests, cluster.gateway.max_requests) == (0, 7)
    assert dict(cluster.gateway.ended_requests) == {"OK": 1, "INVALID_ARGUMENT": 1}
    assert cluster.gateway.streamed_tokens == 8


async def test_health_and_reflection(world: World) -> None:
    health = health_pb2_grpc.HealthStub(world.channel)
    for service in ("", "sigmoe.v1.InferenceService", "sigmoe.v1.AdminService"):
        found = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    names = reflection_pb2_grpc.ServerReflectionStub(world.channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    async for response in names:
        listed = {service.name for service in response.list_services_response.service}
    assert {"sigmoe.v1.InferenceService", "sigmoe.v1.AdminService", "grpc.health.v1.Health"} <= listed


async def test_while_loading_calls_are_told_to_come_back(model_dir: Path) -> None:
    executor = SimulatedExecutor()
    gateway = Gateway(GatewayConfig(port=0), executor, model_dir)
    port = await gateway.listen()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        error = await failure(stub.GetModel(pb.GetModelRequest()))
        assert isinstance(error, Unavailable) and "loading" in str(error)
        health = health_pb2_grpc.HealthStub(channel)
        found = await health.Check(health_pb2.HealthCheckRequest())
        assert found.status == health_pb2.HealthCheckResponse.NOT_SERVING
        async for _ in executor.start():
            pass
        await gateway.serve()
        assert (await stub.GetModel(pb.GetModelRequest())).vocab_size == 512
    await gateway.stop(0)
    await executor.stop()


async def test_clients_can_read_what_the_server_was_started_with(model_dir: Path) -> None:
    executor = SimulatedExecutor()
    async for _ in executor.start():
        pass
    gateway = Gateway(GatewayConfig(port=0, configuration='{"engine": {"amx": false}}'), executor, model_dir)
    async with AsyncClient(f"127.0.0.1:{await gateway.start()}") as client:
        assert (await client.cluster()).configuration == {"engine": {"amx": False}}
    await gateway.stop(0)
    await executor.stop()


async def test_a_port_in_use_is_named(world: World, model_dir: Path) -> None:
    second = Gateway(GatewayConfig(port=world.port), world.executor, model_dir)
    with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{world.port}: port {world.port} is in use"):
        await second.start()


async def test_a_host_that_is_not_ours_is_named(model_dir: Path) -> None:
    gateway = Gateway(GatewayConfig(host="no.such.host.invalid", port=0), SimulatedExecutor(), model_dir)
    with pytest.raises(CannotListen, match=r"gateway\.host 'no\.such\.host\.invalid'"):
        await gateway.listen()


async def test_a_checkpoint_without_a_tokenizer_stops_the_start(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "config.json").write_text((model_dir / "config.json").read_text())
    gateway = Gateway(GatewayConfig(port=0), SimulatedExecutor(), tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        await gateway.start()
    await gateway.stop(0)


def test_the_gateway_needs_no_torch() -> None:
    code = "import sys, cluster.gateway; print(*{'torch', 'ray', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
