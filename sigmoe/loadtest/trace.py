"""Recorded traffic: JSON lines with a `timestamp` in seconds, and what was asked then."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigmoe.loadtest.jsonl import KEYS, entries, item_of
from sigmoe.loadtest.workload import Item, Workload

_MOST_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One line: when, and what, as far as it says so."""

    at_s: float
    item: Item | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


def read_trace(path: Path, speed: float = 1.0) -> list[Arrival]:
    """The arrivals in order of time, the first one at 0; `speed` 2 replays twice as fast.

    A line is {"timestamp": s} and, if it is to say what is asked, a prompt as in other files or "input_tokens";
    "output_tokens" forces the answer's length. Raises ValueError naming file and line.
    """
    found = sorted((_arrival(entry, where) for where, entry in entries(path)), key=lambda arrival: arrival.at_s)
    if not found:
        raise ValueError(f"{path}: holds no arrivals")
    start_s = found[0].at_s
    return [
        Arrival(
            at_s=(arrival.at_s - start_s) / speed,
            item=arrival.item,
            input_tokens=arrival.input_tokens,
            output_tokens=arrival.output_tokens,
        )
        for arrival in found
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace and what fills in where it says nothing: random ids for given lengths, else another workload."""

    path: str
    speed: float
    arrivals: Sequence[Arrival]
    vocab_size: int
    other: Workload

    def items(self, seed: str) -> Iterator[Item]:
        """One for each arrival, in order."""
        rng, others = random.Random(f"{seed}/trace"), self.other.items(seed)
        for arrival in self.arrivals:
            if arrival.item is not None:
                item = arrival.item
            elif arrival.input_tokens is not None:
                item = Item(prompt=tuple(rng.choices(range(self.vocab_size), k=arrival.input_tokens)))
            else:
                item = next(others)
            output_tokens = arrival.output_tokens or item.output_tokens
            yield Item(prompt=item.prompt, rounds=item.rounds, output_tokens=output_tokens)

    def times(self) -> Iterator[float]:
        """When each is meant to be sent."""
        return (arrival.at_s for arrival in self.arrivals)

    def facts(self) -> dict[str, Any]:
        """Its own size, and the other workload's facts where that is asked."""
        facts = {"name": "trace", "origin": self.path, "items": len(self.arrivals), "speed": self.speed}
        is_filled = any(a.item is None and a.input_tokens is None for a in self.arrivals)
        return facts | ({"asks": self.other.facts()} if is_filled else {})


def _arrival(entry: dict[str, Any], where: str) -> Arrival:
    at_s = entry.get("timestamp")
    if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not math.isfinite(at_s):
        raise ValueError(f"{where}: timestamp: expected seconds as a number, got {at_s!r}")
    item = item_of(entry, where) if any(key in entry for key in KEYS) else None
    return Arrival(
        at_s=float(at_s),
        item=item,
        input_tokens=_tokens(entry, "input_tokens", where),
        output_tokens=_tokens(entry, "output_tokens", where),
    )


def _tokens(entry: dict[str, Any], key: str, where: str) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= _MOST_TOKENS:
        raise ValueError(f"{where}: {key}: expected a whole number from 1 to {_MOST_TOKENS}, got {value!r}")
    return value
