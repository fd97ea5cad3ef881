"""A gateway that is ready: what its services answer from."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf import duration_pb2

from cluster.executor import Executor
from cluster.request_builder import RequestBuilder
from cluster.served_model import ServedModel
from cluster.switchboard import Switchboard


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The model, the ranks and the way to them."""

    model: ServedModel
    executor: Executor
    switchboard: Switchboard
    builder: RequestBuilder
    max_context: int
    dtype: str
    clock: Callable[[], float]
    started: float  # on the clock

    def uptime(self) -> duration_pb2.Duration:
        """How long it has been serving."""
        return seconds_message(self.clock() - self.started)

    def deadline(self, context: Any) -> float | None:
        """When a call's time is up, on the clock; None where the client set no deadline."""
        left_s: float | None = context.time_remaining()
        return None if left_s is None else self.clock() + left_s


def seconds_message(seconds: float) -> duration_pb2.Duration:
    """Seconds as a well-known type."""
    message = duration_pb2.Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def draw_seed() -> int:
    """A seed for a request that brings none; any uint64 will do."""
    return secrets.randbits(64)
