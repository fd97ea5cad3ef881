"""Drafting where answers are short: prompts run beside decodes, in a closed loop of made-up costs."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from scheduler.draft_costs import DraftCosts, DraftedStep, PerDecode
from scheduler.draft_delivery import Delivery
from scheduler.draft_length import DraftLength
from scheduler.draft_odds import DraftOdds
from scheduler.model_cost import ModelCost
from scheduler.prompt_load import PromptLoad

MAX_DRAFTS = 5
NUM_PROMPT_ROWS = 24
NUM_ANSWER = 28  # tokens, on average
NOISE = 0.03


@dataclass(frozen=True, kw_only=True)
class World:
    """Always as many live sequences. A step costs 3 ms and `row_ms` for each row, or less for one of a prompt."""

    num_live: int
    odds: float
    prompt_share: float
    row_ms: float = 0.025

    def model_s(self, num_rows: float, num_prompt_rows: float = 0.0) -> float:
        return 1e-3 * (3.0 + self.row_ms * (num_rows + self.prompt_share * num_prompt_rows))

    def extend_s(self, num_rows: float) -> float:
        return 1e-3 * (0.3 + 0.005 * num_rows) if num_rows else 0.0

    def pass_s(self, num_sequences: int) -> float:
        return 1e-3 * (0.1 + 0.01 * num_sequences)

    def step(self, num_rows: int, num_followed: int, asked: list[int], num_prompt_rows: int = 0) -> DraftedStep:
        """`asked`: drafts for the next step, of each sequence."""
        num_passes = max(max(asked, default=0) - 1, 0)
        return DraftedStep(
            num_rows=num_rows + num_prompt_rows,
            num_prompt_rows=num_prompt_rows,
            num_followed=num_followed,
            num_passes=num_passes,
            num_further=sum(max(num - 1, 0) for num in asked),
            model_s=self.model_s(num_rows, num_prompt_rows),
            extend_s=self.extend_s(num_followed),
            draft_s=sum(self.pass_s(sum(num > place + 1 for num in asked)) for place in range(num_passes)),
        )

    def measured(self) -> list[DraftedStep]:
        return [self.step(num, num, [2] * num) for num in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]


@dataclass
class Answer:
    """A sequence; one that has not begun runs its prompt next."""

    odds: DraftOdds | None
    left: int
    chance: float  # of each draft
    has_begun: bool = False
    num_drafts: int = 0


class Loop:
    """A new prompt for each answer that ends. `length`: drafts in each round; None: the controller's choice."""

    def __init__(self, world: World, length: int | None = None, seed: int = 0) -> None:
        self.control = DraftLength(
            MAX_DRAFTS if length is None else length, is_adaptive=length is None, measured=self.known(world)
        )
        self.steps: list[DraftedStep] = []
        self._world, self._draw = world, random.Random(seed)
        self._answers = [self._new() for _ in range(world.num_live)]
        self._is_sample = False

    def known(self, world: World) -> list[DraftedStep]:
        """What was measured before the first request."""
        return world.measured()

    def hear(self, step: DraftedStep) -> None:
        """Tell the controller what a step took."""
        self.control.observe_step(step)

    def chance(self) -> float:
        """Of each draft of a new answer."""
        return self._world.odds

    def rate(self, num_steps: int) -> float:
        """Tokens a second after a third of the steps."""
        total, spent_s = 0, 0.0
        for number in range(num_steps):
            num_tokens, step = self._step(is_heard=number % 16 == 0)
            if number >= num_steps // 3:
                total += num_tokens
                spent_s += step.model_s + step.extend_s + step.draft_s
        return total / spent_s

    def _step(self, *, is_heard: bool) -> tuple[int, DraftedStep]:
        """`is_heard`: whether the controller hears of it though nothing is followed."""
        control, decodes = self.control, [answer for answer in self._answers if answer.has_begun]
        starting = [answer for answer in self._answers if not answer.has_begun]
        followed = [answer.odds for answer in decodes if answer.odds is not None]
        if decodes:
            control.begin_step(
                len(decodes), followed, len(decodes) - len(followed), num_live=len(decodes) + len(starting)
            )
        if control.is_off:
            for answer in decodes:
                answer.odds, answer.num_drafts = None, 0
        num_rows = sum(1 + answer.num_drafts for answer in decodes)
        asked = [self._asked(answer) for answer in self._answers]
        is_followed = [answer.odds is not None for answer in decodes]
        kept = [self._verify(answer) for answer in decodes]
        num_prompt_rows = NUM_PROMPT_ROWS * len(starting)
        num_followed = sum(num for num, follows in zip(kept, is_followed, strict=True) if follows)
        num_followed += NUM_PROMPT_ROWS * sum(answer.odds is not None for answer in starting)
        step = self._world.step(num_rows, num_followed, asked, num_prompt_rows)
        step = replace(
            step,
            num_starting=len(starting),
            num_tokens=sum(kept),
            num_decodes=len(decodes),
            is_plain=num_rows == len(decodes) and not any(asked),
            model_s=step.model_s * self._draw.lognormvariate(0.0, NOISE),
        )
        self.steps.append(step)
        if num_followed or is_heard:
            self.hear(step)
        for answer in starting:
            answer.has_begun, answer.left = True, answer.left - 1
        for answer, num in zip(self._answers, asked, strict=True):
            answer.num_drafts = num
        self._answers = [answer if answer.left > 0 else self._new() for answer in self._answers]
        self._is_sample = control.is_sampling
        return sum(kept) + len(starting), step

    def _new(self) -> Answer:
        follows = self.control.follows_next()
        odds = self.control.new_odds() if follows else None
        return Answer(odds=odds, left=self._draw.randrange(1, 2 * NUM_ANSWER), chance=self.chance())

    def _asked(self, answer: Answer) -> int:
        limit = min(MAX_DRAFTS, answer.left - 2)
        return self.control.length_for(answer.odds, limit) if answer.odds is not None and limit > 0 else 0

    def _verify(self, answer: Answer) -> int:
        """Tokens of one decode."""
        accepted = 0
        while accepted < answer.num_drafts and self._draw.random() < answer.chance:
            accepted += 1
        if answer.num_drafts and answer.odds is not None:
            self.control.observe_round(answer.odds, answer.num_drafts, accepted, accepted, is_sample=self._is_sample)
        answer.left -= 1 + accepted
        return 1 + accepted


@pytest.mark.parametrize("prompt_share", [0.3, 0.6])
@pytest.mark.parametrize(("num_live", "odds"), [(1, 0.5), (16, 0.5), (64, 0.5), (64, 0.8)])
def test_nearly_the_best_fixed_length_where_answers_are_short(num_live: int, odds: float, prompt_share: float) -> None:
    world = World(num_live=num_live, odds=odds, prompt_share=prompt_share)
    fixed = [Loop(world, length).rate(1000) for length in range(4)]
    loop = Loop(world)
    rate = loop.rate(3000)
    assert rate > 0.95 * max(fixed), f"{rate / max(fixed):.3f} of the best; {loop.control.reason}"
    assert rate > 0.97 * fixed[0], f"{rate / fixed[0]:.3f} of plain; {loop.control.reason}"


@pytest.mark.parametrize("num_live", [1, 4, 64])
@pytest.mark.parametrize("length", [1, 3])
def test_what_is_promised_is_what_a_closed_loop_gains(num_live: int, length: int) -> None:
    """While drafting, more of the live sequences are at their prompts than would be without, and those gain nothing."""
    world = World(num_live=num_live, odds=0.8, prompt_share=0.75)
    loop = Loop(world, length)
    gain = loop.rate(3000) / Loop(world, 0).rate(3000)
    costs = DraftCosts(world.measured())
    for step in loop.steps:
        costs.observe(step)
    num_decodes = sum(step.num_decodes for step in loop.steps)
    num_tokens = sum(step.num_tokens for step in loop.steps)
    num_drafts = sum(step.num_rows - step.num_prompt_rows for step in loop.steps) / num_decodes - 1.0
    each = PerDecode(
        num_rows=1.0 + num_drafts,
        num_tokens=num_tokens / num_decodes,
        num_followed=num_tokens / num_decodes,
        further=[num_drafts / length] * (length - 1),
        follows_prompts=True,
    )
    promised = costs.drafted_rate(num_live, each) / costs.plain_rate(num_live)
    assert promised == pytest.approx(gain, rel=0.03)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_what_a_prompt_row_costs_is_learnt_from_neighbours(share: float) -> None:
    """The machine's pace wanders by a third; the kinds of steps come in stretches."""
    draw = random.Random(3)
    world = World(num_live=64, odds=0.8, prompt_share=share)
    model = ModelCost()
    for known in world.measured():
        model.know(known.num_rows, known.model_s, 2)
    pace = 1.0
    for number in range(6000):
        is_plain = number % 40 < 8
        num_rows = 64 if is_plain else draw.randrange(180, 250)
        num_prompt_rows = NUM_PROMPT_ROWS * draw.randrange(5 if is_plain else 13)
        pace = min(max(pace * draw.lognormvariate(0.0, 0.02), 0.75), 1.33)
        seconds = world.model_s(num_rows, num_prompt_rows) * pace * draw.lognormvariate(0.0, NOISE)
        model.observe(num_rows + num_prompt_rows, seconds, num_prompt_rows=num_prompt_rows, is_plain=is_plain)
    # Of a mix that was never seen, too.
    for one, other in (((64, 48), (215, 144)), ((64, 160), (215, 0))):
        assert model.seconds(*one) / model.seconds(*other) == pytest.approx(
            world.model_s(*one) / world.model_s(*other), rel=0.06
        )


def test_what_another_batch_was_delivered_decides_little() -> None:
    """A small batch was delivered what was promised for long, a large one gets a tenth less."""
    world = World(num_live=64, odds=0.8, prompt_share=0.75)
    costs = DraftCosts(world.measured())
    delivery = Delivery()

    def deliver(num_live: int, share: float, num_steps: int) -> None:
        tokens = 1000
        for number in range(num_steps):
            step = DraftedStep(num_rows=num_live, num_decodes=num_live, num_tokens=tokens, model_s=1.0)
            delivery.add(step, tokens / (1.2 * share * costs.plain_rate(num_live)))
            if number % 8 == 7:
                delivery.settle(1.2, costs)

    deliver(8, 1.0, 2000)
    assert delivery.factor == pytest.approx(1.0)
    delivery.change_batch()
    deliver(64, 0.9, 200)
    assert delivery.factor < 0.94


def test_prompts_beside_decodes() -> None:
    load = PromptLoad()
    mix = load.mix(4, 1.0)
    assert (mix.num_decodes, mix.often, mix.num_rows, mix.num_beside) == (4, 0.0, 0.0, 4)
    for _ in range(20_000):
        # One sequence: nine decodes and a prompt, over and over.
        load.observe(9, 30, 1)
    mix = load.mix(1, 1.0)
    assert mix.num_decodes == pytest.approx(0.9) and mix.often == pytest.approx(0.1)
    assert mix.num_rows == pytest.approx(30.0) and mix.num_beside == pytest.approx(0.0, abs=1e-9)
    mix = load.mix(1, 3.0)
    assert mix.num_decodes == pytest.approx(3 / 4) and mix.often == pytest.approx(1 / 4)
    # Of 60 sequences six start in each step, more than those at most; hardly any step has none.
    mix = load.mix(60, 1.0)
    assert mix.num_decodes == pytest.approx(54.0) and mix.often > 0.99
    assert mix.num_rows * mix.often == pytest.approx(6 * 30) and mix.num_beside == pytest.approx(54.0, rel=0.01)
