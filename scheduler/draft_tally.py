"""Counting what drafting brought."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.request import DraftCounts, Round


class DraftTally:
    """Rounds of one sequence, or of all."""

    def __init__(self) -> None:
        self.num_rounds = 0
        self.num_committed = 0
        self._drafted: list[int] = []
        self._accepted: list[int] = []

    def take(self, rounds: Iterable[Round], num_tokens: int) -> None:
        """Count rounds of which so many tokens were taken; the others ran in vain."""
        for num_drafted, num_accepted, num_committed in rounds:
            if num_tokens <= 0:
                return
            if num_drafted:
                self.add(num_drafted, num_accepted, min(num_committed, num_tokens))
            num_tokens -= num_committed

    def add(self, num_drafted: int, num_accepted: int, num_committed: int) -> None:
        """One verification of at least one draft; see `Round`."""
        self.num_rounds += 1
        self.num_committed += num_committed
        missing = num_drafted - len(self._drafted)
        if missing > 0:
            self._drafted += [0] * missing
            self._accepted += [0] * missing
        for place in range(num_drafted):
            self._drafted[place] += 1
        for place in range(num_accepted):
            self._accepted[place] += 1

    def counts(self) -> DraftCounts:
        """What has been counted."""
        if not self.num_rounds:
            return _NOTHING
        return DraftCounts(
            num_rounds=self.num_rounds,
            num_committed=self.num_committed,
            drafted=tuple(self._drafted),
            accepted=tuple(self._accepted),
        )


_NOTHING = DraftCounts()
