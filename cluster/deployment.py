"""What `sigmoe serve` starts and stops: ranks, whoever watches over them, and a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from cluster.executor import GroupInfo, GroupStatus, LoadProgress


class Deployment(Protocol):
    """All methods are called from one asyncio loop."""

    def start(self) -> AsyncIterator[LoadProgress]:
        """Start everything; it serves when the iterator ends. Raises GroupStartError, CannotListen, CheckpointError."""
        ...

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        ...

    def info(self) -> GroupInfo:
        """Facts of the group that serves."""
        ...

    async def status(self) -> GroupStatus:
        """A snapshot of the group that serves."""
        ...

    async def ended(self) -> str:
        """Wait until it cannot go on; returns why."""
        ...

    async def stop(self, drain_s: float) -> None:
        """Let calls under way end for `drain_s`, then stop everything that was started. Safe to call twice."""
        ...
