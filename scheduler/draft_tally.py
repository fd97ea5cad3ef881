"""Counting what drafting brought."""

from __future__ import annotations

from scheduler.request import DraftCounts


class DraftTally:
    """Rounds of one sequence, or of all."""

    def __init__(self) -> None:
        self.num_rounds = 0
        self.num_committed = 0
        self._drafted: list[int] = []
        self._accepted: list[int] = []

    def add(self, num_drafted: int, num_accepted: int, num_committed: int) -> None:
        """One verification. Fewer tokens are committed than accepted where the sequence ends among them."""
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
