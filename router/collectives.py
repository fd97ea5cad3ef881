"""How many collectives a rank asked for: ranks that disagree would wait for one another for ever."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CollectiveCount:
    """A running total over all layers and steps, those that a graph repeats included."""

    total: int = 0
