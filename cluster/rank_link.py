"""What a local rank, thread or process, has to do with its executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.executor import GroupInfo, LoadProgress, RankEvents, RankStatus
from engine.config import EngineConfig, StoreAddress
from scheduler.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOpened:
    """Rank 0 hosts the group's store here; the other ranks may build."""

    address: StoreAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReady:
    """A rank serves. `info` counts this rank's KV cache."""

    rank: int
    info: GroupInfo


RankMessage = StoreOpened | LoadProgress | RankReady | RankEvents

# Called from the link's own thread, in the order of events. A rank that cannot start reports RankEvents.lost.
Listener = Callable[[RankMessage], None]


class RankLink(Protocol):
    """One rank as its executor holds it. The methods never wait for the rank, except `join`."""

    def build(self, config: EngineConfig) -> None:
        """Let the rank build itself and then serve; what happens goes to the listener."""
        ...

    def submit(self, request: Request) -> None:
        """Hand a request over; without effect on a rank that is gone (the listener has heard of it)."""
        ...

    def cancel(self, request_id: str) -> None:
        """Cancel a request; without effect on a rank that is gone."""
        ...

    def status(self, timeout_s: float) -> RankStatus:
        """The rank now; `is_alive` is false for one that is gone or does not answer in time. Blocks."""
        ...

    def stop(self) -> None:
        """Ask the rank, and with it its group, to stop."""
        ...

    def join(self, timeout_s: float) -> None:
        """Wait for the rank's end and give back what it held, by force when it takes longer."""
        ...
