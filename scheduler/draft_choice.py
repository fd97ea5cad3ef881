"""Which drafts are worth their time: those that make the most tokens a second.

With B decodes, drafts whose chances to be committed are c, and T the time of the step that verifies and makes them
and of the prompts that so many tokens bring along,
    rate = (B + sum of c) / T,
to be compared with what as many live sequences would make without drafts, of which more decode at a time.
Drafts are worth taking in the order of their chances; so the best set is all those above some price.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.draft_costs import DraftCosts, PerDecode

_NUM_LOOKS = 24  # prices that are compared, at most: the best is flat
_BETTER = 1.003  # times the gain of fewer drafts that more must promise: odds flatter those that are far out


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Drafts whose chance to be committed is at least `price`, up to place `length`; none where `length` is 0."""

    length: int
    price: float
    gain: float  # tokens a second, relative to a step without drafts and without a draft model


def best_choice(
    chances: Sequence[Sequence[float]],
    num_decodes: int,
    costs: DraftCosts,
    truth: float = 1.0,
    *,
    num_live: int = 0,
    follows_prompts: bool = True,
) -> Choice:
    """The best drafts for a batch; entry i of a sequence's chances is that its draft i + 1 is committed, falling in i.

    `num_decodes`: sequences that decode, of which those in `chances` may have drafts. `truth`: how many of the drafts
    that chances promise are committed, relative to their sum. `num_live`: sequences with those at their prompts, if
    there are more. `follows_prompts`: whether the draft model follows the prompts of new ones. With no draft worth its
    time the choice still is the best one with drafts, its gain below 1.
    """
    every = sorted((chance for mine in chances for chance in mine), reverse=True)
    if not every:
        return Choice(length=0, price=1.0, gain=0.0)
    places = [sorted(column) for column in zip(*chances, strict=True)]
    num_live = max(num_live, num_decodes)
    plain_rate = costs.plain_rate(num_live)
    sums = [0.0]
    for chance in every:
        sums.append(sums[-1] + truth * chance)
    stride = -(-len(every) // _NUM_LOOKS)
    best = Choice(length=0, price=1.0, gain=0.0)
    for count in sorted({*range(stride, len(every), stride), len(every), 1}):
        price = every[count - 1]
        wanting = [len(column) - bisect_left(column, price) for column in places]
        each = PerDecode(
            num_rows=1.0 + count / num_decodes,
            num_tokens=1.0 + sums[count] / num_decodes,
            # Of all that are followed the rows that stay are, whether or not they have drafts.
            num_followed=(len(chances) + sums[count]) / num_decodes,
            further=[num / num_decodes for num in wanting[1:]],
            follows_prompts=follows_prompts,
        )
        gain = costs.drafted_rate(num_live, each) / plain_rate
        if gain > best.gain * _BETTER:
            # Halfway to the next chance: odds move a little before the next choice.
            below = every[count] if count < len(every) else 0.0
            best = Choice(length=sum(1 for num in wanting if num), price=(price + below) / 2, gain=gain)
    return best
