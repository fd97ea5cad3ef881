"""What the gateway is told about the fleet by the one who runs it, and tells whoever asks."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from cluster.autoscale import Load
from cluster.journal import Journal


class ReplicaState(enum.Enum):
    """Where a replica is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    RECOVERING = "recovering"  # its group was lost, the next one starts
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPicture:
    """One replica."""

    number: int
    state: ReplicaState


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPicture:
    """The fleet now."""

    replicas: tuple[ReplicaPicture, ...] = ()
    wanted: int = 1
    least: int = 1
    most: int = 1
    reason: str = ""  # of the number wanted; empty where there is nothing to decide
    load: Load | None = None  # that the decision was made for


class Board:
    """Where the gateway finds both. Belongs to one event loop."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.picture = FleetPicture()
