"""GET /metrics for Prometheus, and /healthz for whoever asks over HTTP whether calls would be answered."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cluster.metrics import families
from sigmoe.errors import SigmoeError
from sigmoe.v1 import admin_service_pb2 as admin

Snapshot = Callable[[], Awaitable[admin.GetClusterResponse]]


class MetricsSite:
    """A small HTTP server. Belongs to one event loop."""

    def __init__(self, histograms: CollectorRegistry, snapshot: Snapshot) -> None:
        """`snapshot` raises Unavailable while there is nothing to tell."""
        self._histograms = histograms
        self._snapshot = snapshot
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics), web.get("/healthz", self._health)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        listening: int = self._runner.addresses[0][1]
        return listening

    async def stop(self) -> None:
        """Listen no more. Safe to call twice."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        registry = CollectorRegistry()
        with contextlib.suppress(SigmoeError):  # what calls did so far is told all the same
            registry.register(_Families(families(await self._snapshot())))
        registry.register(_Families(self._histograms.collect()))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def _health(self, _: web.Request) -> web.Response:
        try:
            await self._snapshot()
        except SigmoeError as error:
            return web.Response(status=503, text=f"{error}\n")
        return web.Response(text="serving\n")


class _Families(Collector):
    """Metrics that were made elsewhere, for one exposition."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics

    def describe(self) -> Iterable[Metric]:
        return ()
