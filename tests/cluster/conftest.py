"""A gateway over simulated ranks, and clients of it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cluster.gateway import Gateway
from cluster.gateway_config import GatewayConfig
from sigmoe.v1 import admin_service_pb2_grpc, inference_service_pb2_grpc
from tests.cluster.checkpoint_folder import END, ROLE_END, write_checkpoint_folder
from tests.cluster.simulated_executor import SimulatedExecutor


@dataclass
class World:
    """A serving gateway, its ranks, and stubs that talk to it."""

    gateway: Gateway
    executor: SimulatedExecutor
    port: int
    channel: grpc.aio.Channel
    inference: Any
    admin: Any

    async def settled(self) -> None:
        """Wait until nothing is under way anywhere, then check that nothing is left."""
        async with asyncio.timeout(30):
            while self.gateway.num_active:
                await asyncio.sleep(0.001)
        await self.executor.idle()
        self.executor.check_clean()
        assert self.gateway.num_open_streams == 0
        assert not any(self.gateway.loads.values())


Start = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint_folder(tmp_path_factory.mktemp("model") / "tiny")


@asynccontextmanager
async def started_world(
    model_dir: Path,
    *,
    max_requests: int = 1000,
    resume_timeout_s: float = 30.0,
    metrics_port: int | None = None,
    **ranks: Any,
) -> AsyncIterator[World]:
    executor = SimulatedExecutor(**{"eos": (END, ROLE_END), **ranks})
    async for _ in executor.start():
        pass
    config = GatewayConfig(
        port=0,
        metrics_port=metrics_port,
        max_requests=max_requests,
        resume_timeout_s=resume_timeout_s,
    )
    gateway = Gateway(config, executor, model_dir)
    port = await gateway.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        yield World(
            gateway=gateway,
            executor=executor,
            port=port,
            channel=channel,
            inference=inference_service_pb2_grpc.InferenceServiceStub(channel),
            admin=admin_service_pb2_grpc.AdminServiceStub(channel),
        )
    finally:
        await channel.close()
        await gateway.stop(grace_s=0.0)
        await executor.stop()


@pytest.fixture
def start(model_dir: Path) -> Start:
    """`async with start(num_ranks=2, max_requests=10) as world`."""
    return functools.partial(started_world, model_dir)


@pytest.fixture
async def world(start: Start) -> AsyncIterator[World]:
    async with start() as running:
        yield running
        await running.settled()
