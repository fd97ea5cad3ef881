"""What a forward pass costs by its rows, told apart from how fast the machine is at the moment.

A machine that others use, too, slows down and speeds up for seconds at a time; a step without drafts timed in a slow
second and one with drafts in a quick one say nothing about drafts. So only neighbours in time are held against each
other: what one of them gains the other loses, lest noise make sizes that are measured drift away from those that
are not.

What comes first after a verification is slow for a while (the processor's caches hold what a verification needs: at
one row, 13 to 18% in the step after it and 7% ten steps later, measured on two cores). So steps without drafts
are compared with those that verify by runs of each kind, at their ends.

A prompt's row has no logits and no draw, and less context behind it. It is charged as a share of a row, learnt from
neighbours of one kind with more and with fewer prompt rows.
"""

from __future__ import annotations

import math

from scheduler.cost_curve import CostCurve, bucket, tamed

RUN = 6  # steps of one kind, one after the other, after which they can be compared with the other kind
_ERROR_DECAY = 0.98
_PACE_WEIGHT = 0.5  # of a step's own pace, beside that of the steps before: it must change long before the curve does
_MOST_RATIO = 3.0  # of a step's pace to that before it, either way
_PROMPT_SHARE = 0.75  # at the start: 0.65 to 0.75 on two cores
_LEAST_SHARE, _MOST_SHARE = 0.2, 1.5
_MOST_SURPRISE = 1.5  # times what was expected, either way, that tells anything of prompt rows
_SURPRISE_NOISE = 15.0  # of times without any meaning, relative to how unsure the share is, both squared


class ModelCost:
    """Learns from every step. Seconds are at the pace of 1."""

    def __init__(self) -> None:
        self.pace = 1.0  # of the steps of late: what they took, relative to what the curve says
        self.error = 0.0  # of what was expected of a step, relative to what it took; fading mean
        self._curve = CostCurve()
        self._num_expected = 0
        self._prompt_share = _PROMPT_SHARE
        self._per_share = 0.0  # logarithm of the last step's time by the share
        self._size = 0.0  # of the last step: its rows, those of prompts as a share
        self._is_plain = False
        self._num_run = 0  # steps of its kind in a row
        self._other: tuple[float, float] | None = None  # size and pace of the other kind, before this run
        self.has_compared = False  # steps with and without drafts

    def know(self, num_rows: int, seconds: float, count: float) -> None:
        """Take in what is known from the start, worth so many measurements."""
        self._curve.observe(num_rows, seconds, count)

    def observe(
        self, num_rows: int, seconds: float, *, num_prompt_rows: int = 0, is_plain: bool, group_rows: float = 1.0
    ) -> None:
        """Take in a step. `is_plain`: whether it neither verified drafts nor asked for any.

        `group_rows`: see `DraftedStep`.
        """
        size = group_rows * self._size_of(num_rows - num_prompt_rows, num_prompt_rows)
        known_s = self._curve.seconds(size)
        ratio = 1.0 if known_s is None else seconds / (known_s * self.pace)
        per_share = group_rows * num_prompt_rows * self._curve.steepness(size)
        is_same_kind = is_plain == self._is_plain and self._size > 0.0
        if is_same_kind:
            self._learn_share(per_share - self._per_share, ratio)
        if not self._curve.knows(size):
            self._curve.observe(size, seconds / self.pace)
        elif is_same_kind and bucket(self._size) != bucket(size):
            self._curve.move(self._size, 1.0 / self._curve.observe(size, seconds / self.pace))
        if is_plain != self._is_plain:
            self._other = (self._size, self.pace) if self._num_run >= RUN else None
            self._is_plain, self._num_run = is_plain, 0
        self._num_run += 1
        self._size, self._per_share = size, per_share
        if known_s is not None:
            self._follow_pace(ratio)
        if self._num_run == RUN and self._other is not None:
            self._compare(*self._other)

    def seconds(self, num_rows: float, num_prompt_rows: float = 0.0) -> float:
        """Of a pass over so many rows and so many of prompts; 1 where nothing is known."""
        seconds = self._curve.seconds(self._size_of(num_rows, num_prompt_rows))
        return 1.0 if seconds is None else seconds

    def _size_of(self, num_rows: float, num_prompt_rows: float) -> float:
        return num_rows + self._prompt_share * num_prompt_rows

    def _learn_share(self, per_share: float, ratio: float) -> None:
        """`per_share`: by how much more of its logarithm this step's time depends on the share than that before it."""
        step = per_share * math.log(tamed(ratio, _MOST_SURPRISE)) / (per_share**2 + _SURPRISE_NOISE)
        self._prompt_share = min(max(self._prompt_share + step, _LEAST_SHARE), _MOST_SHARE)

    def _compare(self, size: float, pace: float) -> None:
        """Hold this run against the one before it, whose end had that size and that pace."""
        self.has_compared = True
        if bucket(size) != bucket(self._size):
            ratio = self.pace / pace
            self._curve.move(self._size, ratio, RUN)
            self._curve.move(size, 1.0 / ratio, RUN)

    def _follow_pace(self, ratio: float) -> None:
        """`ratio`: of what a step took to what was expected of it."""
        self._num_expected += 1
        weight = max(1.0 - _ERROR_DECAY, 1.0 / self._num_expected)
        self.error += weight * (abs(1.0 / ratio - 1.0) - self.error)
        self.pace *= tamed(ratio, _MOST_RATIO) ** _PACE_WEIGHT
