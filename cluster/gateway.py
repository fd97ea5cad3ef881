"""The front door: a gRPC server over an executor. Holds no weights and imports no torch."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from cluster.admin_service import AdminService
from cluster.admission import Admission
from cluster.attainment import Attainment
from cluster.autoscale import Load
from cluster.board import Board
from cluster.calls import Calls
from cluster.executor import Executor
from cluster.gateway_config import GatewayConfig
from cluster.gateway_security import SecurityMistake
from cluster.inference_service import InferenceService
from cluster.journal import Journal
from cluster.latencies import Latencies
from cluster.load_meter import measure
from cluster.metrics_site import MetricsSite
from cluster.request_builder import RequestBuilder
from cluster.served_model import ServedModel
from cluster.serving import Serving, draw_seed
from cluster.switchboard import Switchboard
from cluster.waiting_room import Patience
from sigmoe.errors import Unavailable
from sigmoe.v1 import admin_service_pb2, admin_service_pb2_grpc, inference_service_pb2, inference_service_pb2_grpc

_log = logging.getLogger(__name__)

_OPTIONS = (
    # gRPC drops calls with a bare CANCELLED when a burst of some thousands is faster than Python accepts them;
    # admission refuses better, with RESOURCE_EXHAUSTED and a hint.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Without it a second server on the same port starts happily and gets half of the calls.
    ("grpc.so_reuseport", 0),
    # A prompt of 128k tokens takes about one; the gateway's own, clearer refusal comes before this one's.
    ("grpc.max_receive_message_length", 16 * 2**20),
    # A client that is gone without a word is noticed, and its requests cancelled.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
_SERVICES = (
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)
_OVERALL = ""  # the health of the server as a whole


class CannotListen(OSError):
    """The address can not be listened on; the message names it and says why."""


class Gateway:
    """Serves one executor's ranks on one address. Belongs to one event loop; stops nothing it did not start.

    `board` is what it tells of the fleet behind it; whoever runs that keeps it up to date.
    """

    def __init__(
        self,
        config: GatewayConfig,
        executor: Executor,
        model_dir: Path,
        clock: Callable[[], float] = time.monotonic,
        board: Board | None = None,
    ) -> None:
        self._config = config
        self._executor = executor
        self._model_dir = model_dir
        self._clock = clock
        self._calls = Calls(Admission(config.max_requests, clock))
        self._histograms = CollectorRegistry()
        self._attainment = Attainment(config.slo_first_token_s, config.slo_token_s, clock)
        self.board = board or Board(Journal(time.time))
        self._admin = AdminService(self._calls, self._ready, self.board, config.configuration)
        self._site = MetricsSite(self._histograms, self._admin.snapshot)
        self.metrics_port: int | None = None  # while it listens
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._serving: Serving | None = None
        self._pump: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def num_active(self) -> int:
        """Calls under way."""
        return self._calls.admission.num_active

    @property
    def num_open_streams(self) -> int:
        """Streams that ranks may still feed."""
        return 0 if self._serving is None else self._serving.switchboard.num_open

    @property
    def loads(self) -> dict[int, int]:
        """Rows under way on each rank that takes requests; none before `serve`."""
        return {} if self._serving is None else self._serving.switchboard.loads

    async def start(self) -> int:
        """Listen and serve at once, for an executor that has started. Returns the port."""
        port = await self.listen()
        await self.serve()
        return port

    async def listen(self) -> int:
        """Take the address; calls answer UNAVAILABLE until `serve`. Returns the port. Raises CannotListen."""
        assert self._server is None, "listens already"
        try:
            credentials, guards = self._config.security.credentials(), self._config.security.interceptors()
        except SecurityMistake as error:
            raise CannotListen(str(error)) from None
        server = grpc.aio.server(options=_OPTIONS, interceptors=guards)
        latencies = Latencies(
            self._histograms, self._clock, self._attainment, counts_background=self._config.background_counts
        )
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceService(self._calls, self._ready, latencies), server
        )
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(self._admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self._set_health(False)
        port = _bind(server, self._config.host, self._config.port, credentials)
        try:
            await self._listen_for_metrics()
        except CannotListen:
            await server.stop(None)
            raise
        await server.start()
        self._server = server
        return port

    async def serve(self) -> None:
        """Read the checkpoint's small files and answer calls. Raises CheckpointError."""
        model = await asyncio.to_thread(ServedModel.from_dir, self._model_dir, self._config.model_name)
        info = self._executor.info()
        max_context = min(info.max_context, info.kv_tokens_per_rank)
        switchboard = Switchboard(
            self._executor,
            patience=Patience(resume_s=self._config.resume_timeout_s, wait_s=self._config.wait_s),
            clock=self._clock,
            on_ranks=self._tell_ranks,
        )
        self._serving = Serving(
            model=model,
            executor=self._executor,
            switchboard=switchboard,
            builder=RequestBuilder(model, max_context, draw_seed, info.draft_model),
            max_context=max_context,
            dtype=self._config.dtype,
            clock=self._clock,
            started=self._clock(),
        )
        self._pump = asyncio.create_task(switchboard.run())
        await self._tell_ranks(bool(switchboard.ranks))

    async def load(self) -> Load:
        """What there is to do. Raises Unavailable before `serve`."""
        serving = self._ready()
        return await measure(
            serving.executor,
            serving.switchboard,
            self._attainment,
            now_s=self._clock(),
            counts_background=self._config.background_counts,
        )

    async def drain(self, ranks: Collection[int], limit_s: float) -> int:
        """Take ranks out of service; see `Switchboard.drain`. Raises Unavailable before `serve`."""
        return await self._ready().switchboard.drain(ranks, limit_s)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those under way end for `grace_s`, then end them. Safe to call twice."""
        if self._server is None or self._is_stopping:
            return
        self._is_stopping = True
        self.board.journal.close()
        await self._health.enter_graceful_shutdown()
        stopped = asyncio.create_task(self._server.stop(grace_s + 1.0))
        await asyncio.wait([stopped], timeout=grace_s)
        if self._serving is not None:
            self._serving.switchboard.fail_all(Unavailable("the server is stopping"))
        await stopped
        if self._pump is not None and self._serving is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
            await self._serving.switchboard.stop()
        await self._site.stop()

    def _ready(self) -> Serving:
        if self._serving is None:
            raise Unavailable("the model is still loading; try again later")
        if self._is_stopping:
            raise Unavailable("the server is stopping")
        return self._serving

    async def _listen_for_metrics(self) -> None:
        host, port = self._config.host, self._config.metrics_port
        if port is None:
            return
        try:
            self.metrics_port = await self._site.start(host, port)
        except OSError as error:
            raise CannotListen(f"gateway.metrics_port: cannot listen on {host}:{port}: {error.strerror}") from None

    async def _tell_ranks(self, has_ranks: bool) -> None:
        """Where calls wait for a rank they are answered, if late: that is as good as serving."""
        await self._set_health(has_ranks or self._config.wait_s > 0)

    async def _set_health(self, is_serving: bool) -> None:
        """What health checks hear; the name is grpc.health.v1's."""
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in (_OVERALL, *_SERVICES):
            await self._health.set(service, status)


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound: int = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {address}: {_why(host, port) or error}") from None
    return bound


def _why(host: str, port: int) -> str:
    """The system's reason, which gRPC keeps to itself."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except socket.gaierror as error:
        return f"gateway.host {host!r} is no address of this machine ({error.strerror})"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} is in use; stop what listens there or choose another gateway.port"
        return str(error.strerror)
    return ""
