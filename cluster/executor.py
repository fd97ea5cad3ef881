"""The seam between the gateway and the ranks, wherever these live."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from scheduler.request import DraftMethod, Request, SchedulerStats, TokenDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    """One rank as an operator sees it."""

    rank: int  # in its group
    device: str
    host: str
    pid: int
    is_alive: bool
    experts: tuple[int, ...] = ()  # logical ids held
    stats: SchedulerStats | None = None
    num_steps: int = 0
    num_tokens: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    expert_tokens: tuple[int, ...] = ()  # rows that this rank's gate sent to each logical expert, all MoE layers
    kernels: str = ""  # which kernel backend runs, e.g. "native avx512_bf16 amx" or "torch"
    replica: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """One expert-parallel group, or several where replicas are served."""

    epoch: int
    ranks: tuple[RankStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvents:
    """What one rank reported since the last look. `lost` non-empty: the rank is gone, with the reason.

    `joined`: a rank that was lost serves again, in a new epoch, and knows nothing of earlier requests.
    """

    rank: int
    deltas: tuple[TokenDelta, ...] = ()
    lost: str = ""
    joined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far one rank is on its way to serving."""

    rank: int
    stage: str  # "starting", "loading", "compiling" (whose bytes are kernels), "warming", "ready"
    done_bytes: int = 0
    total_bytes: int = 0
    replica: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfo:
    """What the gateway must know of a group that is ready."""

    num_ranks: int
    max_context: int
    vocab_size: int
    kv_tokens_per_rank: int
    draft_model: DraftMethod = DraftMethod.NONE  # the kind that is loaded, if any


class GroupStartError(Exception):
    """The group could not be started; the message says which rank failed, and why."""


class Executor(Protocol):
    """Runs the G ranks of one group. All methods are called from one asyncio loop."""

    def start(self) -> AsyncIterator[LoadProgress]:
        """Start every rank, yielding progress; the group serves when the iterator ends. Raises GroupStartError."""
        ...

    def info(self) -> GroupInfo:
        """Facts of the started group."""
        ...

    def ranks(self) -> tuple[int, ...]:
        """The ranks that serve now, ascending; `events` tells of those that are lost and that join."""
        ...

    async def submit(self, rank: int, request: Request) -> None:
        """Hand a request to a rank. `deadline_s` is seconds from now here; the rank puts its own clock under it.

        A rank that is lost takes it silently, or raises ConnectionError: `events` tells of the loss.
        """
        ...

    async def cancel(self, rank: int, request_id: str) -> None:
        """Cancel a request; one that is unknown or ended is ignored."""
        ...

    def events(self) -> AsyncIterator[RankEvents]:
        """Everything the ranks report, until `stop`."""
        ...

    async def status(self) -> GroupStatus:
        """A snapshot of the group."""
        ...

    async def stop(self) -> None:
        """Stop every rank and give back what `start` took. Safe to call twice."""
        ...
