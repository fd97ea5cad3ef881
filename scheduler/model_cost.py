"""What a forward pass costs by its rows, told apart from how fast the machine is at the moment.

A machine that others use, too, slows down and speeds up for seconds at a time; a step without drafts timed in a slow
second and one with drafts in a quick one say nothing about drafts. So only neighbours in time are held against each
other: what one of them gains the other loses, lest noise make sizes that are measured drift away from those that
are not.

What comes first after a verification is slow for a while (the processor's caches hold what a verification needs: at
one row, 13 to 18% in the step after it and 7% ten steps later, measured on two cores). So steps without drafts
are compared with those that verify by runs of each kind, at their ends.
"""

from __future__ import annotations

from scheduler.cost_curve import CostCurve, bucket, tamed

RUN = 6  # steps of one kind, one after the other, after which they can be compared with the other kind
_ERROR_DECAY = 0.98
_PACE_WEIGHT = 0.5  # of a step's own pace, beside that of the steps before: it must change long before the curve does
_MOST_RATIO = 3.0  # of a step's pace to that before it, either way


class ModelCost:
    """Learns from every step. Seconds are at the pace of 1."""

    def __init__(self) -> None:
        self.pace = 1.0  # of the steps of late: what they took, relative to what the curve says
        self.error = 0.0  # of what was expected of a step, relative to what it took; fading mean
        self._curve = CostCurve()
        self._num_expected = 0
        self._num_rows = 0  # of the last step
        self._is_plain = False
        self._num_run = 0  # steps of its kind in a row
        self._other: tuple[int, float] | None = None  # rows and pace of the other kind, before this run
        self.has_compared = False  # steps with and without drafts

    def know(self, num_rows: int, seconds: float, count: float) -> None:
        """Take in what is known from the start, worth so many measurements."""
        self._curve.observe(num_rows, seconds, count)

    def observe(self, num_rows: int, seconds: float, *, is_plain: bool) -> None:
        """Take in a step. `is_plain`: whether it neither verified drafts nor asked for any."""
        known_s = self._curve.seconds(num_rows)
        if not self._curve.knows(num_rows):
            self._curve.observe(num_rows, seconds / self.pace)
        elif is_plain == self._is_plain and self._num_rows and bucket(self._num_rows) != bucket(num_rows):
            self._curve.move(self._num_rows, 1.0 / self._curve.observe(num_rows, seconds / self.pace))
        if is_plain != self._is_plain:
            self._other = (self._num_rows, self.pace) if self._num_run >= RUN else None
            self._is_plain, self._num_run = is_plain, 0
        self._num_run += 1
        self._num_rows = num_rows
        if known_s is not None:
            self._follow_pace(seconds / (known_s * self.pace))
        if self._num_run == RUN and self._other is not None:
            self._compare(*self._other)

    def seconds(self, num_rows: float) -> float:
        """Of a pass over so many rows; 1 where nothing is known."""
        seconds = self._curve.seconds(num_rows)
        return 1.0 if seconds is None else seconds

    def _compare(self, num_rows: int, pace: float) -> None:
        """Hold this run against the one before it, at whose end there were so many rows at that pace."""
        self.has_compared = True
        if bucket(num_rows) != bucket(self._num_rows):
            ratio = self.pace / pace
            self._curve.move(self._num_rows, ratio, RUN)
            self._curve.move(num_rows, 1.0 / ratio, RUN)

    def _follow_pace(self, ratio: float) -> None:
        """`ratio`: of what a step took to what was expected of it."""
        self._num_expected += 1
        weight = max(1.0 - _ERROR_DECAY, 1.0 / self._num_expected)
        self.error += weight * (abs(1.0 / ratio - 1.0) - self.error)
        self.pace *= tamed(ratio, _MOST_RATIO) ** _PACE_WEIGHT
