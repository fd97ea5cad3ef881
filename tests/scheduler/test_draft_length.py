"""The controller in made-up worlds: known costs, known odds, a count of tokens and seconds."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from scheduler.draft_costs import DraftCosts
from scheduler.draft_length import DraftedStep, DraftLength
from scheduler.draft_odds import DraftOdds, reach

MAX_DRAFTS = 5


@dataclass(frozen=True)
class MadeUp:
    """A step costs 1 ms, `per_row` of that for each row and `per_pass` for each draft; drafts hold with `odds`."""

    odds: float
    per_row: float
    per_pass: float

    def model_s(self, num_rows: int) -> float:
        return 1e-3 * (1.0 + self.per_row * num_rows)

    def draft_s(self, num_passes: int) -> float:
        return 1e-3 * self.per_pass * num_passes

    def rate(self, batch: int, drafts: int) -> float:
        tau = 1.0 + sum(self.odds**place for place in range(1, drafts + 1))
        return batch * tau / (self.model_s(batch * (1 + drafts)) + self.draft_s(drafts))


def decode(world: MadeUp, batch: int, num_steps: int, seed: int = 0) -> tuple[float, DraftLength]:
    """Tokens per second after a warm-up, of sequences of 100 steps."""
    draw = random.Random(seed)
    control = DraftLength(MAX_DRAFTS, is_adaptive=True)
    tokens, spent_s = 0, 0.0
    odds: list[DraftOdds | None] = [None] * batch
    left, drafts = [0] * batch, [0] * batch
    for step in range(num_steps):
        for i in range(batch):
            if not left[i]:
                odds[i] = control.new_odds() if control.follows_next() else None
                left[i], drafts[i] = draw.randrange(50, 150), 0
            left[i] -= 1
        followed = [i for i in range(batch) if odds[i] is not None]
        control.begin_step(batch, len(followed))
        if control.is_off:
            odds, drafts, followed = [None] * batch, [0] * batch, []
        wanted = [0 if (o := odds[i]) is None else control.length_for(o, MAX_DRAFTS) for i in range(batch)]
        num_drafted = sum(drafts)
        took = DraftedStep(
            num_rows=batch + num_drafted,
            num_decodes=batch,
            num_proposed=sum(wanted),
            model_s=world.model_s(batch + num_drafted),
            # A draft model that follows and proposes nothing still costs a pass.
            draft_s=world.draft_s(max(1, *wanted) if followed else 0),
        )
        for i in range(batch):
            accepted = 0
            while accepted < drafts[i] and draw.random() < world.odds:
                accepted += 1
            mine = odds[i]
            if drafts[i] and mine is not None:
                control.observe_round(mine, drafts[i], accepted)
            if step >= num_steps // 3:
                tokens += accepted + 1
        spent_s += took.model_s + took.draft_s if step >= num_steps // 3 else 0.0
        control.observe_step(took)
        drafts = wanted
    return tokens / spent_s, control


@pytest.mark.parametrize("odds", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize(("per_row", "per_pass"), [(0.01, 0.1), (0.05, 0.3), (0.3, 0.2)])
def test_nearly_the_best_fixed_length_and_never_far_below_plain(
    odds: float, batch: int, per_row: float, per_pass: float
) -> None:
    world = MadeUp(odds=odds, per_row=per_row, per_pass=per_pass)
    rate, control = decode(world, batch, 6000)
    best = max(world.rate(batch, drafts) for drafts in range(MAX_DRAFTS + 1))
    assert rate > 0.95 * best, f"{rate / best:.3f} of the best; {control.reason}"
    assert rate > 0.97 * world.rate(batch, 0)


def test_drafting_comes_back_when_the_text_gets_easier() -> None:
    control = DraftLength(MAX_DRAFTS, is_adaptive=True)
    lengths: dict[str, str] = {}
    for phase, accepts in (("hard", 0), ("easy", 1)):
        odds = control.new_odds() if control.follows_next() else None
        for step in range(6000):
            if step % 100 == 0:
                odds = control.new_odds() if control.follows_next() else None
            control.begin_step(1, int(odds is not None))
            if control.is_off:
                odds = None
            if odds is None:
                continue
            drafts = control.length_for(odds, MAX_DRAFTS)
            if drafts:
                # Hard text lets one draft in ten pass, so that the head does not look broken.
                control.observe_round(odds, drafts, drafts if accepts or step % 10 == 0 else 0)
            control.observe_step(
                DraftedStep(
                    num_rows=1 + drafts,
                    num_decodes=1,
                    num_proposed=drafts,
                    model_s=1e-3 * (1 + 0.15 * drafts),
                    draft_s=1e-3 * 0.15 * drafts,
                )
            )
        lengths[phase] = control.reason.split(":")[0]
    assert lengths == {"hard": "k=0", "easy": "k=5"}


def test_a_fixed_length_stays() -> None:
    control = DraftLength(3, is_adaptive=False)
    odds = control.new_odds()
    for _ in range(150):
        control.begin_step(4, 4)
        control.observe_round(odds, 3, 0)
        control.observe_step(DraftedStep(num_rows=16, num_decodes=4, num_proposed=12, model_s=1.0, draft_s=1.0))
    assert control.length_for(odds, 3) == 3
    assert control.length_for(odds, 2) == 2


def test_odds_are_conditional_and_fade() -> None:
    odds = DraftOdds(3, decay=0.5, prior_rounds=1.0)
    assert odds.given([0.5, 0.5, 0.5]) == [0.5, 0.485, 0.485 * 0.97]
    for _ in range(50):
        odds.observe(3, 1)  # the first holds, the second fails, the third is never tried
    first, second, third = odds.given([0.5, 0.5, 0.5])
    assert first > 0.8 and second < 0.2 and third == pytest.approx(0.97 * second)
    for _ in range(50):
        odds.observe(3, 0)
    assert odds.given([0.5, 0.5, 0.5])[0] < 0.2
    assert reach([0.5, 0.5]) == [0.5, 0.25]


def test_places_never_tried_are_expected_to_be_nearly_as_good_as_the_last() -> None:
    odds = DraftOdds(3, decay=0.99, prior_rounds=1.0)
    assert odds.carried(0.6) == pytest.approx([0.6, 0.6 * 0.97, 0.6 * 0.97**2])
    for _ in range(500):
        odds.observe(2, 2)
    first, second, third = odds.carried(0.6)
    assert first > 0.99 and second > 0.99 and third == pytest.approx(0.97 * second)


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = DraftCosts(4)
    assert costs.curve(8)[0] == 1.0
    costs.observe_model(8, 2.0)
    costs.observe_model(24, 3.0)
    assert costs.count(8, 0) == costs.count(8, 2) == 1 and not costs.count(8, 4)
    costs.observe_drafts(8, 2, 0.5)
    # Rows cost 1 / 16 each, drafts 0.25 each.
    assert costs.curve(8) == pytest.approx([1.0, 1.375, 1.75, 2.125, 2.5])
    assert costs.curve(8, share=0.5) == pytest.approx([1.0, 1.1875, 1.375, 1.5625, 1.75])
    costs.observe_model(24, 1000.0)  # the machine was busy elsewhere
    assert costs.curve(8)[2] < 5.0


def test_a_row_is_a_row_whether_of_a_prompt_or_a_draft() -> None:
    """A rank that always has prompts beside its decodes learns what verifications cost all the same."""
    costs = DraftCosts(2)
    for num_rows in (70, 90, 130, 200):
        costs.observe_model(num_rows, 1.0 + 0.01 * num_rows)
    plain, verified = 1.0 + 0.01 * 64, 1.0 + 0.01 * 128
    assert costs.curve(64)[1] == pytest.approx(verified / plain + 0.1, rel=0.02)
