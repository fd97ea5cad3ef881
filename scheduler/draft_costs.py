"""What a step costs on this machine, by the number of sequences decoded and of tokens drafted for each."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_DECAY = 0.9  # of what was known, by each new measurement
_PRIOR_SLOPE = 0.2  # of a plain step's time for each draft, while nothing is measured


@dataclass(slots=True)
class _Entry:
    seconds: float
    count: int = 1


class DraftCosts:
    """Seconds of whole steps: running averages by (bucket of sequences, drafts), interpolated in between."""

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._tables: dict[int, dict[int, _Entry]] = {}

    def observe(self, num_sequences: int, num_drafts: int, seconds: float) -> None:
        """Take in a step that decoded so many sequences, with so many drafts each, and nothing else."""
        table = self._tables.setdefault(_bucket(num_sequences), {})
        entry = table.get(num_drafts)
        if entry is None:
            table[num_drafts] = _Entry(seconds)
            return
        entry.count += 1
        # A single slow step (the machine was busy elsewhere) shall not decide.
        weight = max(1.0 - _DECAY, 1.0 / entry.count)
        entry.seconds += weight * (min(seconds, 3.0 * entry.seconds) - entry.seconds)

    def count(self, num_sequences: int, num_drafts: int) -> int:
        """Steps of this kind seen."""
        entry = self._tables.get(_bucket(num_sequences), {}).get(num_drafts)
        return 0 if entry is None else entry.count

    def curve(self, num_sequences: int, share: float = 1.0) -> list[float]:
        """Cost of a step with 0 .. max_drafts drafts, relative to what a plain step is thought to cost.

        Only the `share` of the sequences has drafts.
        """
        bucket = _bucket(num_sequences)
        table = self._tables.get(bucket)
        if not table:
            near = min(self._tables, key=lambda other: abs(other - bucket), default=None)
            table = {} if near is None else self._tables[near]
        known = sorted((drafts, entry.seconds) for drafts, entry in table.items())
        if not known:
            return [1.0 + _PRIOR_SLOPE * share * drafts for drafts in range(self._max_drafts + 1)]
        costs = [_at(known, share * drafts) for drafts in range(self._max_drafts + 1)]
        return [cost / costs[0] for cost in costs]


def _bucket(num_sequences: int) -> int:
    return bisect_right(_BUCKETS, max(num_sequences, 1)) - 1


def _at(known: list[tuple[int, float]], drafts: float) -> float:
    """The cost on the line through the measurements next to `drafts`; it never falls with more drafts."""
    if len(known) == 1:
        at, seconds = known[0]
        return seconds * (1.0 + _PRIOR_SLOPE * drafts) / (1.0 + _PRIOR_SLOPE * at)
    above = next((i for i, (at, _) in enumerate(known) if at >= drafts), len(known) - 1)
    above = max(above, 1)
    (left, left_s), (right, right_s) = known[above - 1], known[above]
    slope = max(right_s - left_s, 0.0) / (right - left)
    return max(left_s + slope * (drafts - left), 0.2 * left_s)
