"""docs/metrics.md, from the metrics themselves."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry

from cluster.attainment import Attainment
from cluster.latencies import Latencies
from cluster.metrics import families
from sigmoe.v1 import admin_service_pb2 as admin

_INTRODUCTION = """\
# Metrics

<!-- Written by `make docs` from the code. Do not edit. -->

With `gateway.metrics_port` set the gateway answers `GET /metrics` for Prometheus, and `GET /healthz` with 200 while
calls would be answered and 503 otherwise. `sigmoe status` shows the same figures. Counters of ranks begin
anew with a rank's process. Counters carry `_total`, histograms `_bucket`, `_sum` and `_count`.

| metric | kind | meaning |
|---|---|---|
"""


def _everything() -> admin.GetClusterResponse:
    """A snapshot in which nothing is absent."""
    fleet = admin.FleetStatus(load=admin.FleetLoad(attainment=1.0))
    return admin.GetClusterResponse(ranks=[admin.RankStatus()], fleet=fleet)


def render() -> str:
    """The page, as Markdown."""
    histograms = CollectorRegistry()
    Latencies(histograms, time.monotonic, Attainment(None, None, time.monotonic))
    metrics = [*families(_everything()), *histograms.collect()]
    rows = (f"| `{metric.name}` | {metric.type} | {metric.documentation} |\n" for metric in metrics)
    return _INTRODUCTION + "".join(rows)
