"""Composition root of `sigmoe serve`: puts the deployment together, shows it, stops it."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from cluster import settings
from cluster.config import Config
from cluster.config_words import ExecutorKind
from cluster.deployment import Deployment
from cluster.executor import GroupStartError
from cluster.gateway import CannotListen
from cluster.progress import LoadingView, picture
from cluster.served_model import ServedModel
from model.config import ModelConfig
from model.errors import CheckpointError

EXIT_FAILURE = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How the server speaks: pictures for people on stdout, or one JSON document a line."""

    console: Console
    is_json: bool


def serve(config: Config, *, is_json: bool = False) -> int:
    """Serve until SIGINT or SIGTERM (exit code 0) or until it cannot go on (1)."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    voice = Voice(console=Console(highlight=False, soft_wrap=True), is_json=is_json)
    try:
        # What can be known early, a bad tokenizer too, is said before anything heavy starts.
        model = ServedModel.from_dir(Path(config.model.path)).config
        demand_free_port(config.gateway.host, config.gateway.port)
        if config.gateway.metrics_port is not None:
            demand_free_port(config.gateway.host, config.gateway.metrics_port, "gateway.metrics_port")
        return asyncio.run(_serve(config, model, voice))
    except (CannotListen, GroupStartError, CheckpointError) as error:
        print(f"sigmoe serve: {error}", file=sys.stderr)
        return EXIT_FAILURE


def demand_free_port(host: str, port: int, key: str = "gateway.port") -> None:
    """Find out before anything heavy starts; `key` is what the user has set. Raises CannotListen."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except socket.gaierror as error:
        raise CannotListen(f"gateway.host: {host!r} is no address of this machine ({error.strerror})") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = "--port (0: any free one)" if key == "gateway.port" else f"--set {key}=PORT"
            raise CannotListen(
                f"{key}: {port} on {host} is in use, perhaps by another `sigmoe serve`; "
                f"stop it, or choose another with {hint}"
            ) from None
        raise CannotListen(f"{key}: cannot listen on {host}:{port}: {error.strerror}") from None


async def _serve(config: Config, model: ModelConfig, voice: Voice) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    deployment = deployment_of(config, model)
    drain_s = 0.0
    try:
        if not await _until(stopping, _start(config, deployment, voice)):
            return 0
        drain_s = config.gateway.drain_s
        ended = await _until(stopping, deployment.ended())
        if ended:
            print(f"sigmoe serve: the ranks were lost too often: {ended[0]}", file=sys.stderr)
            return EXIT_FAILURE
        if not voice.is_json:
            voice.console.print("stopping")
        return 0
    finally:
        await deployment.stop(drain_s)


async def _start(config: Config, deployment: Deployment, voice: Voice) -> None:
    start_s = time.monotonic()
    num_replicas = max(1, config.scaling.min_replicas)
    if not voice.is_json:
        over = "over Ray" if config.cluster.executor is ExecutorKind.RAY else "on this machine"
        replicas = "" if config.scaling.max_replicas == 1 else f"{num_replicas} x "
        voice.console.print(f"starting {replicas}{config.cluster.ranks} ranks {over} with {config.model.path}")
        voice.console.file.flush()
    with LoadingView(voice.console, config.cluster.ranks, num_replicas, is_silent=voice.is_json) as view:
        async for progress in deployment.start():
            view.show(progress)
    address = f"{config.gateway.host}:{deployment.port}"
    status = await deployment.status()
    loaded_s = time.monotonic() - start_s
    if voice.is_json:
        document = {"address": address, "ranks": len(status.ranks), "epoch": status.epoch, "start_s": loaded_s}
        print(json.dumps({"event": "serving", **document}), flush=True)
    else:
        voice.console.print(picture(deployment.info(), status, address, loaded_s))
        if config.gateway.metrics_port is not None:
            voice.console.print(f"metrics on http://{config.gateway.host}:{config.gateway.metrics_port}/metrics")


def deployment_of(config: Config, model: ModelConfig) -> Deployment:
    """What the configuration asks for, not started. `sigmoe batch` brings its own ranks by it, too."""
    engine, gateway = settings.engine_config(config, model), settings.gateway_config(config, model)
    rules = settings.fleet_rules(config)
    if config.cluster.executor is ExecutorKind.LOCAL:
        from cluster.local_deployment import LocalDeployment

        return LocalDeployment(engine, gateway, rules)
    from cluster.ray_deployment import RayDeployment

    return RayDeployment(config.cluster, engine, gateway, rules, config.scaling.room_timeout_s)


async def _until(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> tuple[T] | None:
    """The result of `work`, or None when it was cancelled because the server is to stop."""
    task, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    return None if task.cancelled() else (task.result(),)
