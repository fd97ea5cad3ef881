"""What a rank and the process that compiles for it say to one another. No Triton."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be compiled."""

    config: EngineConfig
    capability: tuple[int, int]  # of the device that will launch it
    cache_dir: str  # Triton's
    num_processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How far it is."""

    num_done: int = 0
    num_all: int = 0  # 0: not known yet
    num_found: int = 0  # that were in the cache
    failed: tuple[str, ...] = ()  # kernels that did not compile
    error: str = ""  # of the first of these, or of all where none is named

    @property
    def is_whole(self) -> bool:
        """Whether all is in the cache now."""
        return 0 < self.num_all == self.num_done and not self.error
