"""The controller in made-up worlds: known costs, known odds, a count of tokens and seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from scheduler.draft_choice import best_choice
from scheduler.draft_costs import DraftCosts, DraftedStep, PerDecode
from scheduler.draft_length import DraftLength
from scheduler.draft_odds import DraftOdds, SharedOdds, Truth, reach

MAX_DRAFTS = 5
LISTEN_EVERY = 16  # steps without a draft model, of which the controller hears one


@dataclass(frozen=True)
class MadeUp:
    """A step costs 1 ms, `per_row` of that for each row and `per_pass` for each draft; drafts hold with `odds`."""

    odds: float
    per_row: float
    per_pass: float

    def model_s(self, num_rows: int) -> float:
        return 1e-3 * (1.0 + self.per_row * num_rows)

    def pass_s(self) -> float:
        return 1e-3 * self.per_pass

    def rate(self, batch: int, drafts: int) -> float:
        tau = 1.0 + sum(self.odds**place for place in range(1, drafts + 1))
        return batch * tau / (self.model_s(batch * (1 + drafts)) + self.pass_s() * drafts)


def step(
    num_rows: int, model_s: float, num_followed: int = 0, wanted: Sequence[int] = (), pass_s: float = 0.0
) -> DraftedStep:
    """One whose draft model takes `pass_s` to follow and as much for each further draft."""
    num_passes = max(max(wanted, default=0) - 1, 0)
    return DraftedStep(
        num_rows=num_rows,
        num_followed=num_followed,
        num_passes=num_passes,
        num_further=sum(max(num - 1, 0) for num in wanted),
        model_s=model_s,
        extend_s=pass_s if num_followed else 0.0,
        draft_s=num_passes * pass_s,
    )


def each(num_rows: float, num_tokens: float, num_followed: float = 2.0, *, follows_prompts: bool = True) -> PerDecode:
    """Of decodes with one draft at most."""
    return PerDecode(
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_followed=num_followed,
        further=[],
        follows_prompts=follows_prompts,
    )


def decode(
    world: MadeUp,
    batch: int,
    num_steps: int,
    seed: int = 0,
    measured: Iterable[DraftedStep] = (),
    host_share: Callable[[bool], float] = lambda is_plain: 0.0,
) -> tuple[float, DraftLength]:
    """Tokens per second after a warm-up, of sequences of 100 steps. `host_share`: what the controller hears of it."""
    draw = random.Random(seed)
    control = DraftLength(MAX_DRAFTS, is_adaptive=True, measured=measured)
    tokens, spent_s = 0, 0.0
    odds: list[DraftOdds | None] = [None] * batch
    left, drafts, is_sample = [0] * batch, [0] * batch, False
    for number in range(num_steps):
        for i in range(batch):
            if not left[i]:
                odds[i] = control.new_odds() if control.follows_next() else None
                left[i], drafts[i] = draw.randrange(50, 150), 0
            left[i] -= 1
        control.begin_step(batch, [mine for mine in odds if mine is not None], odds.count(None))
        if control.is_off:
            odds, drafts = [None] * batch, [0] * batch
        wanted = [0 if mine is None else control.length_for(mine, MAX_DRAFTS) for mine in odds]
        num_drafted = sum(drafts)
        # A draft model that follows and proposes nothing still costs a pass.
        is_following = any(mine is not None for mine in odds)
        took = step(
            batch + num_drafted,
            world.model_s(batch + num_drafted),
            batch if is_following else 0,
            wanted,
            world.pass_s(),
        )
        num_tokens = batch
        for i in range(batch):
            accepted = 0
            while accepted < drafts[i] and draw.random() < world.odds:
                accepted += 1
            mine = odds[i]
            if drafts[i] and mine is not None:
                control.observe_round(mine, drafts[i], accepted, accepted, is_sample=is_sample)
            num_tokens += accepted
        tokens += num_tokens if number >= num_steps // 3 else 0
        spent_s += took.model_s + took.extend_s + took.draft_s if number >= num_steps // 3 else 0.0
        share = host_share(not is_following)
        if control.is_listening if is_following else number % LISTEN_EVERY == 0:
            host_s = share * (took.model_s + took.extend_s + took.draft_s)
            is_plain = not num_drafted + sum(wanted)
            control.observe_step(
                replace(took, num_tokens=num_tokens, num_decodes=batch, is_plain=is_plain, host_s=host_s)
            )
        drafts, is_sample = wanted, control.is_sampling
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


@pytest.mark.parametrize("odds", [0.02, 0.3, 0.6])
@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_costs_that_were_measured_in_a_bad_moment_do_not_last(odds: float, batch: int, factor: float) -> None:
    """What a plain step takes is `factor` times as much, if one believes the steps before the first request."""
    world = MadeUp(odds=odds, per_row=0.05, per_pass=0.3)
    sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    truth = [step(rows, world.model_s(rows), rows, [2] * rows, world.pass_s()) for rows in sizes]
    measured = [replace(one, model_s=one.model_s * (factor if one.num_rows <= batch else 1.0)) for one in truth]
    rate, control = decode(world, batch, 6000, measured=measured)
    best = max(world.rate(batch, drafts) for drafts in range(MAX_DRAFTS + 1))
    assert rate > 0.95 * best, f"{rate / best:.3f} of the best; {control.reason}"
    assert rate > 0.97 * world.rate(batch, 0), f"{rate / world.rate(batch, 0):.3f} of plain; {control.reason}"


@pytest.mark.parametrize("num_lucky", [0, 1, 2, 5])
def test_a_host_that_was_busy_once_does_not_last(num_lucky: int) -> None:
    """The scheduler takes next to nothing; once, in a step without a draft model, something else had the processor."""
    world = MadeUp(odds=0.3, per_row=0.05, per_pass=0.3)
    num_plain = 0

    def host_share(is_plain: bool) -> float:
        nonlocal num_plain
        if not is_plain:
            return 0.05
        num_plain += 1
        return 100.0 if LISTEN_EVERY * num_lucky < num_plain <= LISTEN_EVERY * (num_lucky + 1) else 0.05

    rate, control = decode(world, 16, 6000, host_share=host_share)
    assert rate > 0.97 * world.rate(16, 0), f"{rate / world.rate(16, 0):.3f} of plain; {control.reason}"


def test_passes_that_other_ranks_alone_asked_for_tell_nothing() -> None:
    """A group runs as many as any of its ranks needs."""
    costs = DraftCosts()
    costs.observe(step(2, 1e-3, num_followed=2, wanted=(3, 2), pass_s=2e-4))
    before = costs.draft_s([2, 1])
    costs.observe(replace(step(1, 1e-3, num_followed=1, wanted=(1,), pass_s=2e-4), num_passes=4, draft_s=0.4))
    assert costs.draft_s([2, 1]) == before
    first = DraftCosts()
    first.observe(replace(step(1, 1e-3, num_followed=1, wanted=(1,)), num_passes=4, draft_s=0.4))
    assert first.draft_s([2, 1]) < 0.1


def test_drafting_comes_back_when_the_text_gets_easier() -> None:
    control = DraftLength(MAX_DRAFTS, is_adaptive=True)
    lengths: dict[str, str] = {}
    for phase, accepts in (("hard", 0), ("easy", 1)):
        odds = control.new_odds() if control.follows_next() else None
        for number in range(6000):
            if number % 100 == 0:
                odds = control.new_odds() if control.follows_next() else None
            control.begin_step(1, [] if odds is None else [odds], int(odds is None))
            if control.is_off:
                odds = None
            if odds is None:
                continue
            drafts = control.length_for(odds, MAX_DRAFTS)
            if drafts:
                # Hard text lets one draft in ten pass.
                num_accepted = drafts if accepts or number % 10 == 0 else 0
            control.observe_round(odds, drafts, num_accepted, num_accepted, is_sample=control.is_sampling)
            took = step(1 + drafts, 1e-3 * (1 + 0.15 * drafts), 1, [drafts], 1e-3 * 0.15)
            control.observe_step(replace(took, is_plain=drafts == 0))
        lengths[phase] = control.reason.split(":")[0]
    assert lengths == {"hard": "k=0", "easy": "k=5"}


def test_a_trial_is_not_judged_by_the_beginnings_of_answers() -> None:
    """Answers begin with six rounds that are easy to guess; what follows is not, and drafting does not pay."""
    measured = [step(rows, 1.0 + 0.2 * rows, rows, [2] * rows, 0.1) for rows in (1, 2, 4, 8)]
    control = DraftLength(MAX_DRAFTS, is_adaptive=True, measured=measured)
    odds: DraftOdds | None = control.new_odds()
    num_drafted = num_rounds = 0
    for number in range(12_000):
        if number % 100 == 0:
            odds, num_rounds = control.new_odds() if control.follows_next() else None, 0
        control.begin_step(1, [] if odds is None else [odds], int(odds is None))
        if control.is_off or odds is None:
            odds = None
            continue
        drafts = control.length_for(odds, MAX_DRAFTS)
        if drafts:
            num_accepted = drafts if num_rounds < 6 or num_rounds % 12 == 0 else 0
            control.observe_round(odds, drafts, num_accepted, num_accepted, is_sample=control.is_sampling)
            num_rounds, num_drafted = num_rounds + 1, num_drafted + (number > 4000)
        took = step(1 + drafts, 1.0 + 0.2 * (1 + drafts), 1, [drafts], 0.1)
        control.observe_step(replace(took, num_tokens=1, num_decodes=1, is_plain=not drafts))
    assert 0 < num_drafted <= 4 * 24, "trials draft 24 times each, and nothing else drafts"


def test_a_fixed_length_stays() -> None:
    control = DraftLength(3, is_adaptive=False)
    odds = control.new_odds()
    for _ in range(150):
        control.begin_step(4, [odds] * 4)
        control.observe_round(odds, 3, 0, 0)
        control.observe_step(step(16, 1.0, 4, [3] * 4, 1.0))
    assert control.length_for(odds, 3) == 3
    assert control.length_for(odds, 2) == 2


def given(odds: DraftOdds, prior: list[float]) -> list[float]:
    """The odds at every place."""
    chances = [1.0, *odds.chances(prior, len(prior))]
    return [chance / before for before, chance in pairwise(chances)]


def test_odds_are_conditional_and_fade() -> None:
    odds = DraftOdds(3)
    assert given(odds, [0.5, 0.7, 0.6]) == pytest.approx([0.5, 0.7, 0.6])
    for _ in range(50):
        odds.observe(3, 1)  # the first holds, the second fails, the third is never tried
    first, second, third = given(odds, [0.5, 0.5, 0.5])
    assert first > 0.75 and second < 0.25 and third == pytest.approx(second)
    for _ in range(100):
        odds.observe(3, 0)
    assert given(odds, [0.5, 0.5, 0.5])[0] < 0.25
    assert reach([0.5, 0.5]) == [0.5, 0.25]


def test_places_never_tried_are_expected_to_be_nearly_as_good_as_the_last() -> None:
    shared = SharedOdds(3)
    assert shared.odds() == pytest.approx([0.6, 0.6 * 0.97, 0.6 * 0.97**2])
    for _ in range(500):
        shared.observe(2, 2)
    first, second, third = shared.odds()
    assert first > 0.98 and second > 0.98 and third == pytest.approx(0.97 * second)


def test_what_new_sequences_may_expect_is_not_told_by_the_lucky_ones_alone() -> None:
    """Half of the sequences have drafts that never hold, and soon draft no more."""
    measured = [step(rows, 1.0 + 0.1 * rows, rows, [1] * rows, 0.1) for rows in (1, 2, 4, 8, 16)]
    control = DraftLength(1, is_adaptive=True, measured=measured)
    num_first = []
    for start in range(60):
        pair = [control.new_odds(), control.new_odds()]
        drafts, is_sample = [0, 0], False
        for number in range(100):
            control.begin_step(2, pair)
            proposals = [control.length_for(odds, 1) for odds in pair]
            for odds, num_drafts, is_lucky in zip(pair, drafts, (True, False), strict=True):
                if num_drafts:
                    control.observe_round(odds, num_drafts, int(is_lucky), int(is_lucky), is_sample=is_sample)
                elif start >= 30 and not is_lucky and number == 98:
                    num_first.append(number)
            drafts, is_sample = proposals, control.is_sampling
    assert len(num_first) > 25, "drafts that never hold go on"
    assert 0.4 < control.expected[0] < 0.6


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = DraftCosts([step(8, 2.0, 8, [2] * 8, 0.5), step(24, 3.0)])
    assert [costs.model_s(rows) for rows in (4, 8, 16, 24, 40)] == pytest.approx([1.75, 2.0, 2.5, 3.0, 4.0])
    assert costs.extend_s(8) == pytest.approx(0.5)
    assert costs.draft_s([8, 8]) == pytest.approx(1.0)
    costs.observe(step(24, 1000.0))  # the machine was busy elsewhere
    assert costs.model_s(24) < 7.0


def test_more_rows_never_seem_cheaper() -> None:
    costs = DraftCosts(step(num_rows, seconds) for num_rows, seconds in ((4, 1.0), (8, 2.0), (12, 1.4), (16, 2.2)))
    assert [costs.model_s(rows) for rows in (4, 8, 12, 16)] == pytest.approx([1.0, 1.7, 1.7, 2.2])


def test_a_machine_that_slows_down_slows_all_steps() -> None:
    """Times of a slow while and of a quick one must not be held against each other."""
    costs = DraftCosts([step(rows, 1.0 + 0.1 * rows, rows, [2] * rows, 0.1 * rows) for rows in (1, 8, 16, 32)])
    for _ in range(200):
        costs.observe(step(32, 3 * 4.2, 32, [2] * 32, 3 * 3.2))
    assert costs.model_s(8) / costs.model_s(32) == pytest.approx(1.8 / 4.2, rel=0.15)
    assert costs.extend_s(8) / costs.model_s(8) == pytest.approx(0.8 / 1.8, rel=0.15)
    assert costs.draft_s([8]) / costs.model_s(32) == pytest.approx(0.8 / 4.2, rel=0.15)


def test_noise_does_not_make_what_is_not_measured_look_cheaper() -> None:
    """Only verifications are seen for long; what a plain step would take beside them stays known."""
    draw = random.Random(7)
    costs = DraftCosts([step(16, 1.8), step(64, 3.2), step(128, 4.3)])
    for _ in range(5000):
        num_rows = draw.choice([64, 128])
        costs.observe(step(num_rows, {64: 3.2, 128: 4.3}[num_rows] * draw.lognormvariate(0.0, 0.3)))
    assert costs.model_s(64) / costs.model_s(16) == pytest.approx(3.2 / 1.8, rel=0.1)


def test_the_scheduler_is_part_of_what_a_step_costs() -> None:
    costs = DraftCosts([step(rows, 1.0, rows, [2] * rows, 0.5) for rows in (8, 16)])
    assert costs.plain_rate(8) == pytest.approx(8 / 1.0)
    for _ in range(200):
        costs.observe(replace(step(8, 1.0), is_plain=True, host_s=0.1))
        costs.observe(replace(step(16, 1.0, 16, [1] * 8, 0.5), host_s=0.6))
    assert costs.plain_rate(8) == pytest.approx(8 / 1.1, rel=1e-3)
    assert costs.drafted_rate(8, each(2.0, 1.5)) == pytest.approx(12 / (1.5 * 1.4), rel=1e-2)


def test_at_first_all_draft_alike_unless_that_could_never_pay() -> None:
    """What is expected before anything is known must neither keep drafts from being tried nor choose among them.

    All lengths are tried, so that it is known what each costs.
    """
    for per_row, follow_s, lengths in ((0.05, 0.01, {1, 2, 3}), (1.0, 0.3, {0})):
        measured = [
            step(rows, 1.0 + per_row * rows, rows, [2] * rows, follow_s * rows) for rows in (1, 2, 4, 8, 16, 32, 64)
        ]
        control = DraftLength(MAX_DRAFTS, is_adaptive=True, measured=measured)
        odds = [control.new_odds() for _ in range(8)]
        seen = set()
        for _ in range(3):
            control.begin_step(8, odds)
            (length,) = {control.length_for(mine, MAX_DRAFTS) for mine in odds}
            assert control.is_sampling == (length > 0)
            seen.add(length)
        assert seen == lengths


def test_promises_are_held_against_what_came_of_them() -> None:
    truth = Truth()
    assert truth.factor == 1.0
    for _ in range(1000):
        truth.observe(2.0, 1)
    assert truth.factor == pytest.approx(0.5, abs=0.01)
    truth.doubt()
    assert truth.factor == 1.0
    chances = [reach([0.9, 0.9])] * 4
    costs = DraftCosts([step(rows, 1.0 + 0.05 * rows, rows, [2] * rows, 0.01) for rows in (1, 4, 16, 64)])
    gains = [best_choice(chances, 4, costs, factor).gain for factor in (1.0, 0.5)]
    assert gains[0] > 1.8 and gains[1] < 1.4


def test_prompts_that_the_draft_model_must_follow_are_part_of_the_price() -> None:
    """Each row of the model at 1/16 s and of the draft model at 1/32 s, and prompts of 40 rows."""
    costs = DraftCosts([step(rows, rows / 16, rows, [2] * rows, rows / 32) for rows in (8, 16, 256)])
    assert costs.plain_rate(8) == pytest.approx(8 / (8 / 16))
    assert costs.drafted_rate(8, each(2.0, 1.5, 1.5)) == pytest.approx(12 / (16 / 16 + 12 / 32))
    for number in range(6000):
        # A ninth sequence at its prompt in every fifth step, whose rows cost as much as others: one row for each token.
        num_rows = 40 if number % 5 == 0 else 0
        taken = step(8 + num_rows, (8 + num_rows) / 16, 8 + num_rows, [], (8 + num_rows) / 32)
        is_starting = int(num_rows > 0)
        costs.observe(replace(taken, num_prompt_rows=num_rows, num_starting=is_starting, num_tokens=8, num_decodes=8))
    assert costs.plain_rate(8.2) == pytest.approx(8 / (16 / 16), rel=0.05)
    # Of 8.3 live sequences 8 decode, where each token brings a fortieth of a prompt.
    assert costs.drafted_rate(8.3, each(2.0, 1.5, 1.5)) == pytest.approx(12 / (28 / 16 + 24 / 32), rel=0.05)
    unfollowed = each(2.0, 1.5, 1.5, follows_prompts=False)
    assert costs.drafted_rate(8.3, unfollowed) == pytest.approx(12 / (28 / 16 + 12 / 32), rel=0.05)


def test_drafts_that_do_not_pay_for_long_prompts_are_left_to_those_that_have_them() -> None:
    measured = [step(rows, 1.0 + rows / 16, rows, [2] * rows, rows / 32) for rows in (1, 2, 4, 16, 256, 1024)]
    control = DraftLength(1, is_adaptive=True, measured=measured)
    odds = control.new_odds()
    for number in range(4000):
        if number >= 3600:  # what prompts there are is known by then
            control.begin_step(1, [odds])
            control.observe_round(odds, 1, 1, 1, is_sample=True)
        num_rows = 300 if number % 5 == 0 else 0  # 30 for a token
        follows = number < 3700
        num_followed = 2 + num_rows * follows
        taken = step(2 + num_rows, 1.0 + (2 + num_rows) / 16, num_followed, [1], num_followed / 32)
        is_starting = int(num_rows > 0)
        control.observe_step(
            replace(taken, num_prompt_rows=num_rows, num_starting=is_starting, num_tokens=2, num_decodes=1)
        )
    assert control.length_for(odds, 1) == 1
    assert not control.follows_next() and not control.is_off
    control.begin_step(1, [], 1)
    assert control.is_off


def test_a_pass_over_few_sequences_costs_less() -> None:
    """Where sequences differ, each pass has those that want so many drafts."""
    costs = DraftCosts([step(1, 1.0, 1, [2], 0.1), step(64, 2.0, 64, [2] * 64, 0.4)])
    assert costs.draft_s([64, 1]) == pytest.approx(0.5)
    assert costs.draft_s([64, 0]) == pytest.approx(0.4)


def test_a_row_is_a_row_whether_of_a_prompt_or_a_draft() -> None:
    """A rank that always has prompts beside its decodes learns what verifications cost all the same."""
    costs = DraftCosts(step(num_rows, 1.0 + 0.01 * num_rows) for num_rows in (70, 90, 130, 200))
    assert costs.model_s(64) == pytest.approx(1.64) and costs.model_s(128) == pytest.approx(2.28)


def test_the_drafts_chosen_are_the_best_of_all_sets() -> None:
    """Against every price there is, with the formula written out."""
    draw = random.Random(4)
    costs = DraftCosts([step(1, 1.0, 1, [2], 0.2), step(32, 2.0, 32, [2] * 32, 0.5), step(64, 4.0)])
    for _ in range(50):
        chances = [reach([draw.random() for _ in range(3)]) for _ in range(6)]

        def gain(price: float) -> float:
            taken = [[c for c in mine if c >= price] for mine in chances]  # noqa: B023  called at once
            passes = [sum(len(mine) > place for mine in taken) for place in (1, 2)]
            follow_s = costs.extend_s(6 + sum(map(sum, taken)))
            seconds = costs.model_s(8 + sum(map(len, taken))) + follow_s + costs.draft_s(passes)
            return (8 + sum(map(sum, taken))) / seconds / (8 / costs.model_s(8))

        choice = best_choice(chances, 8, costs)
        prices = [c for mine in chances for c in mine]
        assert choice.gain == pytest.approx(gain(choice.price))
        # Fewer drafts are preferred to as good as nothing.
        assert choice.gain > 0.997 * max(map(gain, prices))
        assert choice.length == max(sum(c >= choice.price for c in mine) for mine in chances)


def test_costs_known_from_the_start_spare_the_learning() -> None:
    """Drafts that can not pay are not tried even once."""
    measured = [step(rows, float(rows), rows, [1] * rows, 0.5 * rows) for rows in (1, 2, 4, 8, 16, 32, 64)]
    control = DraftLength(MAX_DRAFTS, is_adaptive=True, measured=measured)
    control.begin_step(8, [control.new_odds() for _ in range(8)])
    assert control.length_for(control.new_odds(), MAX_DRAFTS) == 0
    assert control.reason.startswith("k=0")


def test_a_smaller_batch_brings_resting_drafts_back() -> None:
    """What cannot pay for 64 sequences may pay for one, and nobody waits for a trial then."""
    measured = [step(r, 1.0 if r < 8 else r / 8, r, [1] * r, 0.05 * r) for r in (1, 2, 4, 8, 16, 32, 64, 128)]
    control = DraftLength(MAX_DRAFTS, is_adaptive=True, measured=measured)
    odds = [control.new_odds() for _ in range(64)]
    while not control.is_off:
        control.begin_step(64, odds)
    assert not control.follows_next()
    control.begin_step(64, [], 64)
    assert not control.follows_next()
    control.begin_step(1, [], 1)
    assert control.follows_next()
