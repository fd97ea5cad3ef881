"""What drafting brought, relative to what was promised of it.

Promises are made of chances and of costs, each of which is measured; what neither knows of (a sequence's last token,
which nothing is drafted for; time between the parts of a step) is the same in all promises, and found here.
"""

from __future__ import annotations

import math

from scheduler.cost_curve import tamed
from scheduler.draft_costs import DraftCosts, DraftedStep

_LEAST_STEPS = 4  # from one decision to the next, that tell anything
_DECAY = 0.998  # of what was known, by each step
_NUM_KNOWN = 64.0  # steps that kept their promises, at the start
_MOST_RATIO = 2.0  # of a few steps, either way


class Delivery:
    """Of one drafter. Sums steps between two decisions."""

    def __init__(self) -> None:
        self.factor = 1.0  # gain for each one promised
        self._weight = _NUM_KNOWN  # steps, fading
        self._num_steps = self._num_tokens = self._num_live = 0
        self._seconds = 0.0

    def add(self, step: DraftedStep, seconds: float) -> None:
        """Take in a step with drafts, that took so many seconds at the pace of 1."""
        self._num_steps += 1
        self._num_tokens += step.num_tokens
        self._num_live += step.num_decodes + step.num_starting
        self._seconds += seconds

    def settle(self, promised: float, costs: DraftCosts) -> None:
        """Hold the steps so far against the gain over plain decoding that was promised for them."""
        if self._num_steps >= _LEAST_STEPS and self._num_live and promised > 0.0:
            gain = self._num_tokens / self._seconds / costs.plain_rate(self._num_live / self._num_steps)
            ratio = tamed(gain / promised, _MOST_RATIO)
            self._weight = self._weight * _DECAY**self._num_steps + self._num_steps
            self.factor *= math.exp(math.log(ratio / self.factor) * self._num_steps / self._weight)
        self._num_steps = self._num_tokens = self._num_live = 0
        self._seconds = 0.0

    def change_batch(self) -> None:
        """Let what comes now decide soon: the steps so far were of more sequences or of fewer."""
        self._weight = min(self._weight, _NUM_KNOWN)

    def doubt(self) -> None:
        """Believe half of it: while nothing is drafted, nothing shows that it is wrong."""
        self.factor = math.sqrt(self.factor)
        self._weight = min(self._weight, _NUM_KNOWN)
