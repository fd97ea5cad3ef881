"""What a step costs on this machine: the model by its rows, the draft model by sequences and drafts."""

from __future__ import annotations

import math
from dataclasses import dataclass

_PER_OCTAVE = 4  # buckets of row counts; up to 8 rows each count has its own
_DECAY = 0.9  # of what was known, by each new measurement
_MODEL_SLOPE = 0.1  # of the model's time for as many rows more as there are, while nothing else is measured
_DRAFT_SHARE = 0.1  # of the model's time that a draft costs, while nothing is measured


@dataclass(slots=True)
class _Average:
    """A fading average, and where it was taken."""

    at: float
    seconds: float
    count: int = 0

    def add(self, at: float, seconds: float) -> None:
        self.count += 1
        weight = max(1.0 - _DECAY, 1.0 / self.count)
        # A single slow step (the machine was busy elsewhere) shall not decide.
        seconds = seconds if self.count == 1 else min(seconds, 3.0 * self.seconds)
        self.seconds += weight * (seconds - self.seconds)
        self.at += weight * (at - self.at)


class DraftCosts:
    """Learns from every step, those with prompt chunks too: a row is a row."""

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._model: dict[int, _Average] = {}  # by bucket of rows
        self._drafts: dict[int, dict[int, _Average]] = {}  # by bucket of sequences, then by drafts for each

    def observe_model(self, num_rows: int, seconds: float) -> None:
        """Take in what the model needed for so many rows, sampling included."""
        self._model.setdefault(_bucket(num_rows), _Average(num_rows, seconds)).add(num_rows, seconds)

    def observe_drafts(self, num_sequences: int, num_drafts: int, seconds: float) -> None:
        """Take in what the draft model needed for so many drafts (at least one) for each of so many sequences."""
        table = self._drafts.setdefault(_bucket(num_sequences), {})
        table.setdefault(num_drafts, _Average(num_drafts, seconds)).add(num_drafts, seconds)

    def count(self, num_sequences: int, num_drafts: int) -> int:
        """Steps seen with about as many rows as such a verification has."""
        average = self._model.get(_bucket(num_sequences * (1 + num_drafts)))
        return 0 if average is None else average.count

    def curve(self, num_sequences: int, share: float = 1.0) -> list[float]:
        """Cost of a step with 0 .. max_drafts drafts, relative to a plain step, which needs no draft model.

        Only the `share` of the sequences has drafts.
        """
        plain_s = self._model_s(num_sequences)
        costs = []
        for drafts in range(self._max_drafts + 1):
            verify_s = max(self._model_s(num_sequences * (1.0 + share * drafts)), plain_s)
            costs.append((verify_s + self._draft_s(num_sequences, share * drafts, plain_s)) / plain_s)
        return costs

    def _model_s(self, num_rows: float) -> float:
        """On the line through the two averages next to `num_rows`."""
        known = sorted(self._model.values(), key=lambda average: average.at)
        if len(known) < 2:
            at, seconds = (known[0].at, known[0].seconds) if known else (1.0, 1.0)
            return max(seconds * (1.0 + _MODEL_SLOPE * (num_rows / at - 1.0)), 0.2 * seconds)
        above = next((i for i, average in enumerate(known) if average.at >= num_rows), len(known) - 1)
        left, right = known[max(above, 1) - 1], known[max(above, 1)]
        slope = max(right.seconds - left.seconds, 0.0) / max(right.at - left.at, 1e-9)
        return max(left.seconds + slope * (num_rows - left.at), 0.2 * left.seconds)

    def _draft_s(self, num_sequences: int, drafts: float, plain_s: float) -> float:
        """Passes of the draft model: as many as there are drafts, the first over the rows that stay."""
        if drafts <= 0.0:
            return 0.0
        bucket = _bucket(num_sequences)
        near = min(self._drafts, key=lambda other: abs(other - bucket), default=None)
        if near is None:
            return _DRAFT_SHARE * drafts * plain_s
        known = min(self._drafts[near].values(), key=lambda average: abs(average.at - drafts))
        return known.seconds * drafts / known.at


def _bucket(num: float) -> int:
    return round(num) if num <= 8 else 8 + round(_PER_OCTAVE * math.log2(num / 8))
