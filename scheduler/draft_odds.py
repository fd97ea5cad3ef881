"""How likely drafts are to be accepted, by their place in a round."""

from __future__ import annotations

from collections.abc import Sequence

_CARRY = 0.97  # of the odds at the last place observed, for places beyond it


class DraftOdds:
    """Conditional acceptance: entry i, that draft i + 1 is accepted where the i before it are. Decayed counts.

    The count of a round fades by `decay` with each later one. Until rounds are counted, `prior` speaks, with the
    weight of `prior_rounds` rounds.
    """

    def __init__(self, num_places: int, *, decay: float, prior_rounds: float) -> None:
        self._accepted = [0.0] * num_places
        self._tried = [0.0] * num_places
        self._decay = decay
        self._prior_rounds = prior_rounds

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Count one round. A draft behind the first one refused was not tried."""
        accepted, tried, decay = self._accepted, self._tried, self._decay
        for place in range(min(num_drafted, num_accepted + 1)):
            tried[place] = tried[place] * decay + 1.0
            accepted[place] = accepted[place] * decay + (1.0 if place < num_accepted else 0.0)

    def given(self, prior: Sequence[float]) -> list[float]:
        """The odds at every place; `prior` are those of everybody."""
        weight = self._prior_rounds
        odds: list[float] = []
        for accepted, tried, expected in zip(self._accepted, self._tried, prior, strict=True):
            if tried == 0.0 and odds:
                expected = min(expected, odds[-1] * _CARRY)
            odds.append((accepted + weight * expected) / (tried + weight))
        return odds

    def carried(self, first: float) -> list[float]:
        """The odds at every place where nobody else is known: each place is expected to be hardly worse than the last.

        `first` is expected at the first one.
        """
        expected, odds = first, []
        for accepted, tried in zip(self._accepted, self._tried, strict=True):
            odds.append((accepted + self._prior_rounds * expected) / (tried + self._prior_rounds))
            expected = odds[-1] * _CARRY
        return odds


def reach(odds: Sequence[float]) -> list[float]:
    """The chance that a draft is committed, by place: the product of the odds up to there."""
    chances: list[float] = []
    chance = 1.0
    for odd in odds:
        chance *= odd
        chances.append(chance)
    return chances
