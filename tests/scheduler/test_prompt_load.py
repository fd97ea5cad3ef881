"""The mix of prompts and decodes that is expected, against a house that is watched."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from scheduler.prompt_load import PromptLoad


def watched(num_live: int, tokens_each: int, load: PromptLoad, num_steps: int = 30000) -> dict[str, float]:
    """A closed loop: each answer ends at random, its successor spends one step on a prompt of random length."""
    draw = random.Random(num_live)
    left = [draw.randrange(1, 80) for _ in range(num_live)]  # tokens of each answer; 0: at its prompt
    steps: list[tuple[int, int]] = []  # decodes and prompt rows
    for _ in range(num_steps):
        num_rows = sum(draw.randrange(5, 60) for tokens in left if tokens <= 0)
        num_decodes = sum(tokens > 0 for tokens in left)
        load.observe(num_decodes * tokens_each, num_rows, num_live - num_decodes)
        steps.append((num_decodes, num_rows))
        # Answers are so many tokens on average, whatever a step brings.
        left = [tokens - tokens_each if tokens > 0 else draw.randrange(1, 80) for tokens in left]
    beside = [step for step in steps if step[1]]
    return {
        "num_decodes": fmean(num for num, _ in steps),
        "often": len(beside) / num_steps,
        "num_rows": fmean(num for _, num in beside),
        "num_beside": fmean(num for num, _ in beside),
    }


@pytest.mark.parametrize("num_live", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("tokens_each", [1, 3])
def test_the_mix_is_what_a_closed_loop_shows(num_live: int, tokens_each: int) -> None:
    load = PromptLoad()
    seen = watched(num_live, tokens_each, load)
    mix = load.mix(num_live, tokens_each)
    for name, value in seen.items():
        assert getattr(mix, name) == pytest.approx(value, rel=0.15, abs=0.05), name


def test_without_prompts_all_decode() -> None:
    load = PromptLoad()
    load.observe(8, 0, 0)
    mix = load.mix(8, 2.0)
    assert (mix.num_decodes, mix.often, mix.num_rows, mix.num_beside) == (8, 0.0, 0.0, 8)
