"""Whether a draft model can be right at all."""

from __future__ import annotations

BROKEN_TAU = 1.05  # a right head reaches far more even on hard text
BROKEN_ROUNDS = 200


class DraftJudge:
    """Hears of rounds and tells, every `BROKEN_ROUNDS` of them, whether so few drafts were accepted that the drafter
    must be wired wrongly or made for another model.

    It should hear only of text that the model finds likely: what very hot sampling draws no head can foresee.
    """

    def __init__(self) -> None:
        self._num_rounds = self._num_committed = 0
        self.tau = 0.0  # of the last whole window

    def condemns(self, num_accepted: int) -> bool:
        """Hear of a round; returns whether the window that it ends is too poor."""
        self._num_rounds += 1
        self._num_committed += num_accepted + 1
        if self._num_rounds < BROKEN_ROUNDS:
            return False
        self.tau = self._num_committed / self._num_rounds
        self._num_rounds = self._num_committed = 0
        return self.tau < BROKEN_TAU
