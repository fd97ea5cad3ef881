"""The seam between the fleet and the gateway, in this process or in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from cluster.autoscale import Load, ScalingPolicy
from cluster.board import FleetPicture
from cluster.controller import Group

T = TypeVar("T", bound=Group, contravariant=True)


class Door(Protocol[T]):
    """The gateway, as the fleet sees it. What cannot be told now raises ConnectionError: it may be back soon."""

    async def adopt(self, replica: int, group: T) -> None:
        """Give requests to this group, as the replica's, from now on. A door that is gone learns of it by itself."""
        ...

    async def drain(self, replica: int, limit_s: float) -> int:
        """Give the replica no more and let what it has end; returns how many requests were moved after `limit_s`."""
        ...

    async def release(self, replica: int) -> None:
        """Forget the replica."""
        ...

    async def load(self) -> Load:
        """What there is to do."""
        ...

    async def post(self, picture: FleetPicture) -> None:
        """Show this, and what the journal has new, to those who ask."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRules:
    """How the fleet is run."""

    policy: ScalingPolicy
    max_restarts: int  # of a replica, without a minute of peace
    drain_s: float  # what a replica that goes has for its requests
    interval_s: float = 1.0  # between two looks at the load
