"""How likely drafts are to be accepted, by their place in a round."""

from __future__ import annotations

from collections.abc import Sequence

_CARRY = 0.97  # of the odds at the last place observed, for places beyond it
_DECAY = 0.98  # of a sequence's counts, by each round
_PRIOR_ROUNDS = 16.0  # that the odds of all sequences weigh beside its own
_FIRST = 0.6  # at the first place, before anything is known
_FIRST_ROUNDS = 8.0  # that this weighs
_SHARED_DECAY = 1.0 - 1.0 / 300.0
_TRUTH_DECAY = 1.0 - 1.0 / 250.0
_DOUBTED_ROUNDS = 16.0  # that what was known weighs at most, once it is doubted
_TRUTH_TOKENS = 32.0  # that promises are known to keep at the start


class _Counts:
    """Drafts tried and accepted, by place. The count of a round fades with each later one."""

    def __init__(self, num_places: int, decay: float) -> None:
        self.accepted = [0.0] * num_places
        self.tried = [0.0] * num_places
        self._decay = decay

    def add(self, num_drafted: int, num_accepted: int) -> None:
        """Count one round. A draft behind the first one refused was not tried."""
        accepted, tried, decay = self.accepted, self.tried, self._decay
        for place in range(num_accepted):
            tried[place] = tried[place] * decay + 1.0
            accepted[place] = accepted[place] * decay + 1.0
        if 0 <= num_accepted < num_drafted:
            tried[num_accepted] = tried[num_accepted] * decay + 1.0
            accepted[num_accepted] *= decay

    def shrink(self, most: float) -> None:
        """Let no place weigh more rounds than `most`."""
        for place, tried in enumerate(self.tried):
            share = most / max(tried, most)
            self.tried[place] *= share
            self.accepted[place] *= share


class DraftOdds:
    """Of one sequence. Conditional: entry i, that draft i + 1 is accepted where the i before it are."""

    def __init__(self, num_places: int) -> None:
        self.num_rounds = 0
        self.promised: list[float] = []  # the chances of the drafts that were asked for last
        self._counts = _Counts(num_places, _DECAY)

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Hear of one round."""
        self.num_rounds += 1
        self._counts.add(num_drafted, num_accepted)

    def chances(self, prior: Sequence[float], longest: int, least: float = 0.0) -> list[float]:
        """The chance of each draft to be committed, of `longest` at most and as far as it is `least`.

        `prior` are the odds of everybody. At a place that the sequence never came to it is as much worse than everybody
        as at the one before.
        """
        # For each sequence of each step: with a generator for the odds it took twice the time.
        accepted, tried, found = self._counts.accepted, self._counts.tried, []
        share = chance = 1.0
        for place in range(longest):
            usual, rounds = prior[place], tried[place]
            expected = usual if rounds else usual * share
            odd = (accepted[place] + _PRIOR_ROUNDS * expected) / (rounds + _PRIOR_ROUNDS)
            chance *= odd
            if chance < least:
                break
            found.append(chance)
            share = odd / usual if odd < usual else 1.0
        return found

    def promise(self, prior: Sequence[float], longest: int, price: float) -> int:
        """How many drafts to ask for, `longest` at most: as long as the chance of each to be committed is its price."""
        self.promised = self.chances(prior, longest, price)
        return len(self.promised)


class SharedOdds:
    """What a sequence can expect of which nothing is known.

    To be told of rounds in which all drafted equally far: in all others the deep places are those of the lucky, and
    would promise the same to everybody. Nor of first rounds alone: answers begin with what is easy to guess.
    """

    def __init__(self, num_places: int) -> None:
        self._counts = _Counts(num_places, _SHARED_DECAY)
        self.num_rounds = 0

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Hear of one round of any sequence."""
        self.num_rounds += 1
        self._counts.add(num_drafted, num_accepted)

    def doubt(self) -> None:
        """Let new rounds decide soon: what is known is of other text, as like as not."""
        self._counts.shrink(_DOUBTED_ROUNDS)

    def odds(self) -> list[float]:
        """At every place; each is expected to be hardly worse than the one before it, as far as nothing is known."""
        expected, odds = _FIRST, []
        for accepted, tried in zip(self._counts.accepted, self._counts.tried, strict=True):
            odds.append((accepted + _FIRST_ROUNDS * expected) / (tried + _FIRST_ROUNDS))
            expected = odds[-1] * _CARRY
        return odds


class Truth:
    """What became of promises: odds flatter or underrate whole batches, since those in it are no random sample."""

    def __init__(self) -> None:
        self._promised = self._kept = _TRUTH_TOKENS

    def observe(self, num_promised: float, num_kept: int) -> None:
        """Hear of one round: the sum of its drafts' chances, and how many of them were worth it."""
        self._promised = self._promised * _TRUTH_DECAY + num_promised
        self._kept = self._kept * _TRUTH_DECAY + num_kept

    def doubt(self) -> None:
        """See `SharedOdds`."""
        self._promised = self._kept = _TRUTH_TOKENS

    @property
    def factor(self) -> float:
        """Drafts committed for each one promised."""
        return self._kept / self._promised


def reach(odds: Sequence[float]) -> list[float]:
    """The chance that a draft is committed, by place: the product of the odds up to there."""
    chances: list[float] = []
    chance = 1.0
    for odd in odds:
        chance *= odd
        chances.append(chance)
    return chances
