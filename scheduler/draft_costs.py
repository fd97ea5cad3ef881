"""What a step costs on this machine: the model by its rows, the draft model by the rows that it follows and by the
sequences that it drafts further for.

All times are relative to the machine's pace of the moment. A machine that others use, too, slows down and speeds up
for seconds at a time; a step without drafts timed in a slow second and one with drafts in a quick one say nothing about
drafts. So each time is divided by how much slower than expected the steps of late were.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_PER_OCTAVE = 4  # buckets of row counts; up to 8 rows each count has its own
_DECAY = 0.97  # of what was known, by each new measurement
_FADING = 0.9985  # of what a size's measurements weigh, by each step of any size
_ERROR_DECAY = 0.98
_PACE_WEIGHT = 0.5  # of a step's own pace, beside that of the steps before: it must change long before the curves do
_NUM_KNOWN = 10  # measurements that one known from the start counts for
_MOST_RATIO = 3.0  # that one step counts for, either way: the machine was busy elsewhere for a moment
_LEAST_S = 1e-9  # a part of a step that took no time by the clock
_SLOPE = 0.1  # of a step's time for as many rows more as there are, while only one size is measured
_FOLLOW_SHARE = 0.1  # of the model's time that the draft model takes over as many rows, while nothing is measured
_PROMPT_DECAY = 0.999  # of the counts of prompt rows and tokens, by each step
_MOST_HOST_SHARE = 2.0  # of one step: something else had the host
_FIRST_TOKENS = 512.0  # known from the start, without prompts: a full house begins with nothing else
_STALE = 4  # measurements that a curve may lag behind: drawing it anew takes longer than it changes in so many


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedStep:
    """What one step had and took. Seconds of wall-clock time."""

    num_rows: int  # prompt chunks, roots and drafts
    num_prompt_rows: int = 0  # of them
    num_tokens: int = 0  # committed
    num_followed: int = 0  # rows that the draft model followed, from which come the first drafts
    num_passes: int = 0  # of the draft model behind that, one for each draft more
    num_further: int = 0  # drafts that these made
    model_s: float  # forward pass and sampling
    extend_s: float = 0.0  # following, and the first drafts
    draft_s: float = 0.0  # the further passes
    host_s: float = 0.0  # planning, and taking over what came of it


@dataclass(slots=True)
class _Average:
    """A fading geometric mean, and where it was taken.

    Not an arithmetic one: the pace follows ratios, and what the two make of the same noise would drift apart.
    """

    at: float
    seconds: float
    count: float = 0.0  # of measurements, fading
    added_at: int = 0  # the measurement of the curve that was added last

    def add(self, at: float, seconds: float, number: int) -> None:
        self.count = self.count * _FADING ** (number - self.added_at) + 1.0
        self.added_at = number
        weight = max(1.0 - _DECAY, 1.0 / self.count)
        # A single slow step (the machine was busy elsewhere) shall not decide.
        ratio = min(max(seconds / self.seconds, 1.0 / _MOST_RATIO), _MOST_RATIO)
        self.seconds *= ratio**weight
        self.at += weight * (at - self.at)


class _Curve:
    """Seconds by size, from averages in buckets: more never seems cheaper."""

    def __init__(self) -> None:
        self._averages: dict[int, _Average] = {}
        self._ats: list[float] = []
        self._seconds: list[float] = []
        self._num_new = 0  # measurements since the points were drawn
        self._number = 0  # of the last one

    def observe(self, size: float, seconds: float, count: int = 1) -> None:
        seconds = max(seconds, _LEAST_S)
        average = self._averages.setdefault(_bucket(size), _Average(size, seconds, added_at=self._number))
        self._number += 1
        self._num_new += count if average.count >= _STALE else _STALE
        for _ in range(count):
            average.add(size, seconds, self._number)

    def seconds(self, size: float) -> float | None:
        """On the line through the two points next to `size`; None where nothing is known."""
        if not self._averages:
            return None
        if self._num_new >= _STALE:
            self._pool()
        ats, seconds = self._ats, self._seconds
        if len(ats) == 1:
            return max(seconds[0] * (1.0 + _SLOPE * (size / ats[0] - 1.0)), 0.2 * seconds[0])
        right = min(max(bisect_left(ats, size), 1), len(ats) - 1)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / max(ats[right] - ats[left], 1e-9)
        return max(seconds[left] + slope * (size - ats[left]), 0.2 * seconds[left])

    def _pool(self) -> None:
        """Average neighbours that contradict the order (pool adjacent violators), by their numbers of measurements."""
        pools: list[list[_Average]] = []
        for average in sorted(self._averages.values(), key=lambda average: average.at):
            pools.append([average])
            while len(pools) > 1 and _mean(pools[-2]) >= _mean(pools[-1]):
                pools[-2:] = [pools[-2] + pools[-1]]
        self._num_new = 0
        self._ats = [average.at for pool in pools for average in pool]
        self._seconds = [_mean(pool) for pool in pools for _ in pool]


class DraftCosts:
    """Learns from every step, those with prompt chunks too: a row is a row.

    `measured`: steps known at the start, all timed at the same pace.
    """

    def __init__(self, measured: Iterable[DraftedStep] = ()) -> None:
        self._model = _Curve()  # by rows
        self._extend = _Curve()  # by rows followed
        self._pass = _Curve()  # by sequences
        self._pace = 1.0  # of the steps of late: what they took, relative to what the curves say
        self.error = 0.0  # of what was expected of a step, relative to what it took; fading mean
        self._num_expected = 0
        self._host_shares: dict[bool, float] = {}  # of the rest of a step, by whether it drafted; fading means
        self._num_tokens = _FIRST_TOKENS
        self._num_prompt_rows = 0.0
        self._num_chunks = 0.0  # steps with prompt rows
        self._log_chunks = 0.0  # the sum of their numbers' logarithms: one full house shall not set the size
        for step in measured:
            self._take(step, _NUM_KNOWN)

    def observe(self, step: DraftedStep) -> None:
        """Take in what a step took; one that nobody timed, or that had no rows, is left out."""
        if step.model_s > 0.0 and step.num_rows:
            self._follow_pace(step)
            self._take(step)
            share = min(step.host_s / (step.model_s + step.extend_s + step.draft_s), _MOST_HOST_SHARE)
            before = self._host_shares.setdefault(step.num_followed > 0, share)
            self._host_shares[step.num_followed > 0] = before + (1.0 - _DECAY) * (share - before)

    def _take(self, step: DraftedStep, count: int = 1) -> None:
        self._model.observe(step.num_rows, step.model_s / self._pace, count)
        if step.num_followed:
            self._extend.observe(step.num_followed, step.extend_s / self._pace, count)
        if step.num_passes and step.num_further:  # else the passes were for sequences of other ranks alone
            pass_s = step.draft_s / step.num_passes
            self._pass.observe(step.num_further / step.num_passes, pass_s / self._pace, count)
        self._num_prompt_rows = self._num_prompt_rows * _PROMPT_DECAY + step.num_prompt_rows
        self._num_chunks = self._num_chunks * _PROMPT_DECAY + (step.num_prompt_rows > 0)
        self._log_chunks = self._log_chunks * _PROMPT_DECAY + math.log(max(step.num_prompt_rows, 1))
        self._num_tokens = self._num_tokens * _PROMPT_DECAY + step.num_tokens

    def _follow_pace(self, step: DraftedStep) -> None:
        known_s = self._model.seconds(step.num_rows)
        if known_s is None:
            return
        ratio = step.model_s / (known_s * self._pace)
        self._num_expected += 1
        weight = max(1.0 - _ERROR_DECAY, 1.0 / self._num_expected)
        self.error += weight * (abs(1.0 / ratio - 1.0) - self.error)
        self._pace *= min(max(ratio, 1.0 / _MOST_RATIO), _MOST_RATIO) ** _PACE_WEIGHT

    def model_s(self, num_rows: float) -> float:
        """Seconds of the model over so many rows, at the pace of 1; 1 where nothing is known."""
        seconds = self._model.seconds(num_rows)
        return 1.0 if seconds is None else seconds

    def extend_s(self, num_rows: float) -> float:
        """Seconds that the draft model takes to follow so many rows and to make the first drafts."""
        seconds = self._extend.seconds(num_rows)
        return _FOLLOW_SHARE * self.model_s(num_rows) if seconds is None else seconds

    def draft_s(self, wanting: Sequence[float]) -> float:
        """Seconds of the further passes; entry i is the number of sequences of pass i."""
        known = [self._pass.seconds(num) for num in wanting if num > 0]
        return sum(self.extend_s(wanting[0]) if seconds is None else seconds for seconds in known)

    def plain_s(self, num_decodes: int) -> float:
        """Seconds of a step without drafts and without a draft model, and of what its tokens bring of prompts."""
        chunk, often = self._prompts(num_decodes)
        device_s = (1.0 - often) * self.model_s(num_decodes) + often * self.model_s(num_decodes + chunk)
        return device_s * (1.0 + self._host_share(is_drafted=False))

    def drafted_s(
        self, num_rows: int, num_followed: float, wanting: Sequence[float], num_tokens: float, *, follows_prompts: bool
    ) -> float:
        """Seconds of a step that verifies, follows and drafts, and of what its tokens bring of prompts.

        `wanting`: see `draft_s`. `follows_prompts`: whether the draft model follows the prompts' rows, too.
        """
        chunk, often = self._prompts(num_tokens)
        alone_s = self.model_s(num_rows) + self.extend_s(num_followed)
        beside_s = self.model_s(num_rows + chunk) + self.extend_s(num_followed + chunk * follows_prompts)
        device_s = (1.0 - often) * alone_s + often * beside_s + self.draft_s(wanting)
        return device_s * (1.0 + self._host_share(is_drafted=True))

    def _host_share(self, *, is_drafted: bool) -> float:
        """The scheduler's time relative to the device's; that of the other kind of steps while none was seen."""
        return self._host_shares.get(is_drafted, self._host_shares.get(not is_drafted, 0.0))

    def _prompts(self, num_tokens: float) -> tuple[float, float]:
        """Prompt rows of a step that has any, and the share of steps that do, where a step commits so many tokens.

        Every token brings its share of prompts in the long run: who answers faster is asked more.
        """
        if not self._num_chunks:
            return 0.0, 0.0
        num_rows = self._num_prompt_rows / self._num_tokens * num_tokens
        chunk = max(math.exp(self._log_chunks / self._num_chunks), num_rows)
        return chunk, num_rows / chunk


def _mean(pool: Sequence[_Average]) -> float:
    weights = [min(average.count, 10.0) for average in pool]
    return sum(w * average.seconds for w, average in zip(weights, pool, strict=True)) / sum(weights)


def _bucket(num: float) -> int:
    return round(num) if num <= 8 else 8 + round(_PER_OCTAVE * math.log2(num / 8))
