"""Drafts that gain a few percent or lose them, on a machine that others use, too."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from scheduler.draft_costs import DraftedStep
from tests.scheduler.test_draft_prompts import Loop, World


class Shaky(Loop):
    """Its pace wanders, one step in a hundred takes twice as long, and what was measured at the start is 5% off.

    Texts differ, too: some of them are easy.
    """

    def __init__(self, world: World, length: int | None = None, seed: int = 0) -> None:
        self._shake, self._pace = random.Random(1000 + seed), 1.0
        super().__init__(world, length, seed)

    def known(self, world: World) -> list[DraftedStep]:
        return [
            replace(step, model_s=step.model_s * self._shake.lognormvariate(0.0, 0.05)) for step in world.measured()
        ]

    def hear(self, step: DraftedStep) -> None:
        shake = self._shake
        self._pace = math.exp(0.99 * math.log(self._pace) + shake.gauss(0.0, 0.02))
        model_s, extend_s, draft_s = (
            self._pace * seconds * shake.lognormvariate(0.0, 0.03)
            for seconds in (step.model_s, step.extend_s, step.draft_s)
        )
        is_busy = shake.random() < 0.01
        super().hear(replace(step, model_s=model_s * (1 + is_busy), extend_s=extend_s, draft_s=draft_s))

    def chance(self) -> float:
        return min(max(self._shake.gauss(self._world.odds, 0.1), 0.02), 0.98)


@pytest.mark.parametrize(
    ("num_live", "odds", "row_ms"),
    [(16, 0.75, 0.6), (16, 0.5, 0.14), (16, 0.75, 0.19), (16, 0.75, 0.14), (16, 0.5, 0.05), (32, 0.5, 0.01)],
    ids=["-2%", "-2%, hard text", "7%", "11%", "8%, hard text", "12%, hard text"],
)
def test_a_gain_of_a_few_percent_is_taken_and_a_loss_is_not(num_live: int, odds: float, row_ms: float) -> None:
    """A controller that wants 5% of promise to begin, and 2% to go on, rests in one run or more of each gain."""
    world = World(num_live=num_live, odds=odds, prompt_share=0.75, row_ms=row_ms)
    fixed = [Shaky(world, length).rate(2000) for length in range(4)]
    rates = [Shaky(world, seed=seed).rate(2400) for seed in range(6)]
    of_best = [rate / max(fixed) for rate in rates]
    assert sum(of_best) / len(of_best) > 0.96 and min(of_best) > 0.935, of_best
    assert min(rates) > 0.97 * fixed[0], f"{min(rates) / fixed[0]:.3f} of plain"
