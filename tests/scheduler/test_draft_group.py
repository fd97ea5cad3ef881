"""Drafting on ranks that step together: a step takes what the rows of all cost, and all wait for the slowest."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from scheduler.draft_costs import DraftCosts, DraftedStep, PerDecode
from scheduler.draft_length import DraftLength
from scheduler.draft_odds import DraftOdds

MAX_DRAFTS = 5
NOISE = 0.03
LISTEN_EVERY = 16  # steps without a draft model, of which the controller hears one
Sizes = Callable[[int], Sequence[int]]  # sequences of each rank in a step


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A step takes 1 s, `per_row` for each row that a rank has on average, and 4 ms for each row of the fullest rank.

    The draft model takes 0.1 s to follow and half as much for a further draft, and 2 ms for each row.
    """

    odds: float
    per_row: float

    def model_s(self, rows: Sequence[int]) -> float:
        return 1.0 + self.per_row * sum(rows) / len(rows) + 0.004 * max(rows)

    def extend_s(self, num_rows: int) -> float:
        return 0.1 + 0.002 * num_rows if num_rows else 0.0

    def draft_s(self, asked: Sequence[int]) -> float:
        wanting = [sum(num > place for num in asked) for place in range(1, MAX_DRAFTS)]
        return sum(0.05 + 0.002 * num for num in wanting if num)

    def measured(self) -> list[DraftedStep]:
        """All ranks run the same before the first request."""
        return [
            DraftedStep(
                num_rows=num,
                num_followed=num,
                num_passes=1,
                num_further=num,
                model_s=self.model_s([num]),
                extend_s=self.extend_s(num),
                draft_s=self.draft_s([2] * num),
            )
            for num in (1, 2, 4, 8, 16, 32, 64, 128)
        ]


@dataclass
class Mate:
    """A rank of the group. Its sequences last 100 steps."""

    control: DraftLength
    draw: random.Random
    odds: list[DraftOdds | None] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    is_sample: bool = False
    own_s: float = 0.0  # of the last step, that the draft model took

    def begin(self, num_sequences: int) -> int:
        """Plan a step of so many sequences; returns its rows."""
        control, missing = self.control, [0] * num_sequences
        self.odds = [*self.odds, *[None] * num_sequences][:num_sequences]
        self.left, self.drafts = ([*old, *missing][:num_sequences] for old in (self.left, self.drafts))
        for i in range(num_sequences):
            if not self.left[i]:
                self.odds[i] = control.new_odds() if control.follows_next() else None
                self.left[i], self.drafts[i] = self.draw.randrange(50, 150), 0
            self.left[i] -= 1
        control.begin_step(num_sequences, [odds for odds in self.odds if odds is not None], self.odds.count(None))
        if control.is_off:
            self.odds, self.drafts = [None] * num_sequences, missing
        return num_sequences + sum(self.drafts)

    def verify(self, odds: float) -> int:
        """Tokens of the step."""
        num_tokens = 0
        for mine, num_drafts in zip(self.odds, self.drafts, strict=True):
            num_accepted = 0
            while num_accepted < num_drafts and self.draw.random() < odds:
                num_accepted += 1
            if num_drafts and mine is not None:
                self.control.observe_round(mine, num_drafts, num_accepted, num_accepted, is_sample=self.is_sample)
            num_tokens += 1 + num_accepted
        self.asked = [0 if mine is None else self.control.length_for(mine, MAX_DRAFTS) for mine in self.odds]
        return num_tokens

    def end(self, step: DraftedStep, number: int) -> None:
        if self.control.is_listening if step.num_followed else number % LISTEN_EVERY == 0:
            self.control.observe_step(step)
        self.drafts, self.is_sample, self.own_s = self.asked, self.control.is_sampling, step.extend_s + step.draft_s


def decode(
    machine: Machine, sizes: Sizes, num_steps: int, length: int | None = None, seed: int = 0
) -> tuple[float, list[Mate]]:
    """Tokens a second of the group after a third of the steps. `length`: drafts in each round, or the ranks' choice."""
    draw, num_ranks = random.Random(seed), len(sizes(0))
    most, is_adaptive = MAX_DRAFTS if length is None else length, length is None
    group = [
        Mate(DraftLength(most, is_adaptive=is_adaptive, measured=machine.measured()), draw) for _ in range(num_ranks)
    ]
    num_tokens, spent_s, late_s = 0, 0.0, 0.0
    for number in range(num_steps):
        rows = [mate.begin(num) for mate, num in zip(group, sizes(number), strict=True)]
        kept = [mate.verify(machine.odds) for mate in group]
        model_s = machine.model_s(rows) * draw.lognormvariate(0.0, NOISE)
        for mate, num_rows, num in zip(group, rows, kept, strict=True):
            num_sequences = len(mate.odds)
            is_followed = any(odds is not None for odds in mate.odds)
            step = DraftedStep(
                num_rows=num_rows,
                num_tokens=num,
                num_decodes=num_sequences,
                num_followed=num * is_followed,
                num_passes=max(max(mate.asked) - 1, 0),
                num_further=sum(max(num - 1, 0) for num in mate.asked),
                group_rows=sum(rows) / num_ranks / num_rows,
                group_sequences=sum(sizes(number)) / num_ranks / num_sequences,
                is_plain=num_rows == num_sequences and not any(mate.asked),
                model_s=model_s + late_s - mate.own_s,  # others still drafted in the step before
                extend_s=machine.extend_s(num * is_followed),
                draft_s=machine.draft_s(mate.asked),
            )
            mate.end(step, number)
        late_s = max(mate.own_s for mate in group)
        if number >= num_steps // 3:
            num_tokens += sum(kept)
            spent_s += model_s + late_s
    return num_tokens / spent_s, group


def alternating(number: int) -> Sequence[int]:
    """Others have many sequences and few by turns, 300 steps each."""
    return (4, 16, 12, 14) if number // 300 % 2 else (4, 3, 2, 4)


GROUPS: dict[str, Sizes] = {
    "equal": lambda number: (8, 8, 8, 8),
    "one with little": lambda number: (1, 8, 8, 8),
    "others vary": alternating,
}


def test_steps_are_told_apart_by_the_rows_of_all_ranks() -> None:
    """This rank has eight rows, the three others none or up to 40 each."""
    draw = random.Random(5)
    machine = Machine(odds=0.5, per_row=0.05)
    costs = DraftCosts(machine.measured())
    for _ in range(3000):
        others = [draw.randrange(41) for _ in range(3)]
        mean = (8 + sum(others)) / 4
        model_s = (1.2 + 0.04 * mean) * draw.lognormvariate(0.0, NOISE)
        costs.observe(DraftedStep(num_rows=8, num_decodes=8, num_tokens=8, group_rows=mean / 8, model_s=model_s))
    for num in (4, 8, 16, 24):
        assert costs.model_s(num) / costs.model_s(12) == pytest.approx((1.2 + 0.04 * num) / (1.2 + 0.04 * 12), rel=0.04)


def test_rates_are_those_of_a_group_that_does_as_this_rank() -> None:
    """Two sequences here, 32 on the other rank."""
    costs = DraftCosts(DraftedStep(num_rows=num, model_s=1.0 + num / 16, num_followed=num) for num in (1, 16, 32, 64))
    each = PerDecode(num_rows=2.0, num_tokens=1.5, num_followed=1.5, further=[], follows_prompts=True)
    alone = costs.plain_rate(2), costs.drafted_rate(2, each)
    step = DraftedStep(num_rows=2, num_decodes=2, num_tokens=2, group_rows=8.5, group_sequences=8.5, model_s=33 / 16)
    for _ in range(200):
        costs.observe(step)
    assert alone == pytest.approx((2 / (18 / 16), 3 / (20 / 16)), rel=1e-3)
    assert costs.plain_rate(2) == pytest.approx(2 / (33 / 16), rel=0.01)
    assert costs.drafted_rate(2, each) == pytest.approx(3 / (50 / 16), rel=0.01)
    # What this rank's drafts brought is judged as if the other had drafted, too.
    assert costs.paced_s(step) == pytest.approx(33 / 16, rel=0.01)
    drafted = replace(step, num_rows=4, group_rows=4.5, model_s=34 / 16)
    assert costs.paced_s(drafted) == pytest.approx(50 / 16, rel=0.01)


@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize(("odds", "per_row"), [(0.3, 0.1), (0.6, 0.03), (0.85, 0.1)])
def test_what_is_best_for_a_rank_is_best_for_its_group(odds: float, per_row: float, sizes: Sizes) -> None:
    machine = Machine(odds=odds, per_row=per_row)
    fixed = [decode(machine, sizes, 900, length)[0] for length in range(5)]
    rate, group = decode(machine, sizes, 1800)
    reasons = [mate.control.reason for mate in group]
    assert rate > 0.95 * max(fixed), f"{rate / max(fixed):.3f} of the best; {reasons}"
    assert rate > 0.97 * fixed[0], f"{rate / fixed[0]:.3f} of plain; {reasons}"
