"""Output with drafts is distributed exactly as the model and the request's settings say (speculative-decoding §3.4).

One-sample chi-square on the joint of the first three tokens, one of the prompt and two of rounds: a marginal would miss
conditional errors. The whole grid, 570 cells of 3,000 outputs, takes a core three quarters of an hour, and the p-values
of many runs six minutes: `pytest -m grid tests/engine/test_exact_distribution.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch

from engine.drafters.build import chain_drafter
from engine.drafters.chain import ChainDrafter
from engine.drafters.draft_model import DraftModel
from engine.drafters.memory import DraftMemory
from model.batch import Batch, ModelOutput
from model.proposals import Proposal, accept_or_replace
from scheduler.plan import StepPlan
from scheduler.request import DraftMethod, Request, SamplingParams
from scheduler.scheduler import SchedulerConfig
from tests.engine.drafting_engines import draft_model, drafting_engine, eagle3_head
from tests.engine.exact_distribution import joint_chances
from tests.engine.mixed_requests import CPU, ROOMY
from tests.engine.test_drawn_drafts import BASE, TOKENS, Steered, chi_square_p

SHAPE = "C"
PROMPT = (5, *TOKENS[3:], 9, *TOKENS[:4], TOKENS[5])  # a look-up finds something behind each of them
NUM_TOKENS = 3
TEMPERATURES = (0.3, 1.0)
LIMITS: dict[str, dict[str, Any]] = {
    "no limit": {},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
    "all limits": {"top_k": 5, "top_p": 0.95, "min_p": 0.02},
}
PENALTIES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "presence": {"presence_penalty": 0.8},
    "bias alone": {},
}
LENGTHS = (0, 1, 3, 5)  # of drafts; 0 is plain decoding


class Adversary(ChainDrafter):
    """Drafts what it likes, whatever its head says; follows the rows all the same."""

    def __init__(self, config: SchedulerConfig, choose: Callable[[int, int], int]) -> None:
        head = eagle3_head(SHAPE)
        drafter = chain_drafter(head, config.num_blocks, config.block_size, torch.float32, CPU)
        super().__init__(head, drafter.kv, config.block_size, CPU)
        self._choose = choose

    def draft(
        self, plan: StepPlan, batch: Batch, output: ModelOutput, kept: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        super().draft(plan, batch, output, kept)
        return [
            tuple(self._choose(planned.sequence_id, place) for place in range(planned.num_proposals))
            for planned in plan.sequences
        ]


ADVERSARIES: dict[str, Callable[[int, int], int]] = {
    "always the same": lambda sequence, place: TOKENS[0],
    "at random": lambda sequence, place: TOKENS[hash((sequence, place)) % len(TOKENS)],
    "never possible": lambda sequence, place: 7,
}
DRAFTERS = ("argmax", "drawn", "look-up", *ADVERSARIES)


def outputs(how: SamplingParams, drafter: str, num_drafts: int, seeds: range) -> list[tuple[int, ...]]:
    """The first tokens of an output for each seed."""
    method = DraftMethod.NGRAM if drafter == "look-up" else DraftMethod.EAGLE3 if num_drafts else DraftMethod.NONE
    config = dataclasses.replace(
        ROOMY,
        num_blocks=512,
        max_sequences=256,
        max_waiting=len(seeds),
        draft_method=method if num_drafts else DraftMethod.NONE,
        model_method=method if method.has_kv else DraftMethod.NONE,
        max_drafts=num_drafts,
        adaptive_drafts=False,
    )
    chain: ChainDrafter | None = None
    if num_drafts and drafter in ADVERSARIES:
        chain = Adversary(config, ADVERSARIES[drafter])
    elif num_drafts and method.has_kv:
        model = draft_model(method, SHAPE)
        memory = DraftMemory(config.max_sequences) if drafter == "drawn" else None
        steered = cast(DraftModel, Steered(cast(DraftModel, model)))
        chain = chain_drafter(steered, config.num_blocks, config.block_size, torch.float32, CPU, memory)
    engine, _ = drafting_engine(config, SHAPE, drafter=chain)
    told: dict[str, list[int]] = {}
    how = dataclasses.replace(how, max_tokens=NUM_TOKENS + num_drafts)
    for seed in seeds:
        told[str(seed)] = []
        engine.add(Request(request_id=str(seed), prompt=PROMPT, sampling=dataclasses.replace(how, seed=seed)))
    while engine.has_work:
        for delta in engine.step():
            told[delta.request_id] += delta.token_ids
    assert not num_drafts or engine.stats().drafts.num_rounds > 0
    return [tuple(ids[:NUM_TOKENS]) for ids in told.values()]


@functools.cache
def expected(how: SamplingParams) -> dict[tuple[int, ...], float]:
    return joint_chances(SHAPE, PROMPT, NUM_TOKENS, how)


def goodness_of_fit(told: Sequence[tuple[int, ...]], how: SamplingParams) -> float:
    """The p-value of what was told under what is right; cells that expect fewer than five are one."""
    right = expected(how)
    counts = collections.Counter(told)
    impossible = set(counts) - set(right)
    assert not impossible, f"outputs without probability: {impossible}"
    observed, wanted = collections.Counter[object](), collections.defaultdict[object, float](float)
    for cell, chance in right.items():
        pooled: object = cell if chance * len(told) >= 5 else "rare"
        observed[pooled] += counts[cell]
        wanted[pooled] += chance * len(told)
    if len(wanted) == 1:
        return 1.0
    statistic = sum((observed[cell] - mean) ** 2 / mean for cell, mean in wanted.items())
    return chi_square_p(statistic, len(wanted) - 1)


def settings(temperature: float, limit: str, penalty: str) -> SamplingParams:
    return dataclasses.replace(BASE, temperature=temperature, **LIMITS[limit], **PENALTIES[penalty])


# Limits with penalties, all of them, over temperatures, drafters and lengths in turn.
COVERING = [
    (TEMPERATURES[i % 2], limit, penalty, DRAFTERS[(i + i // 6) % 6], LENGTHS[1 + (i + i // 3) % 3])
    for i, (limit, penalty) in enumerate(itertools.product(LIMITS, PENALTIES))
]
# Rejection has the most to go wrong.
COVERING += [(1.0, limit, "repetition", "drawn", 3) for limit in LIMITS]


@pytest.mark.parametrize(("temperature", "limit", "penalty", "drafter", "num_drafts"), COVERING)
def test_output_is_distributed_as_the_formulas_say(
    temperature: float, limit: str, penalty: str, drafter: str, num_drafts: int
) -> None:
    how = settings(temperature, limit, penalty)
    assert goodness_of_fit(outputs(how, drafter, num_drafts, range(1500)), how) > 1e-4 / len(COVERING)


def test_plain_output_is_distributed_as_the_formulas_say() -> None:
    how = settings(1.0, "all limits", "repetition")
    assert goodness_of_fit(outputs(how, "argmax", 0, range(3000)), how) > 1e-4


@pytest.mark.grid
@pytest.mark.parametrize(
    ("drafter", "num_drafts"), [("argmax", 0), *itertools.product(DRAFTERS, LENGTHS[1:])], ids=lambda value: str(value)
)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_whole_grid(temperature: float, limit: str, penalty: str, drafter: str, num_drafts: int) -> None:
    how = settings(temperature, limit, penalty)
    num_cells = len(TEMPERATURES) * len(LIMITS) * len(PENALTIES) * (1 + len(DRAFTERS) * (len(LENGTHS) - 1))
    assert goodness_of_fit(outputs(how, drafter, num_drafts, range(3000)), how) > 1e-4 / num_cells


def uniform_p(values: Sequence[float]) -> float:
    """Kolmogorov-Smirnov: the chance that as many uniform numbers lie as far from the diagonal (asymptotic)."""
    count = len(values)
    ordered = sorted(values)
    distance = max(max((i + 1) / count - value, value - i / count) for i, value in enumerate(ordered))
    reach = (math.sqrt(count) + 0.12 + 0.11 / math.sqrt(count)) * distance
    tail = math.fsum((-1.0) ** (j - 1) * math.exp(-2.0 * (j * reach) ** 2) for j in range(1, 101))
    return min(1.0, 2.0 * tail)


@pytest.mark.grid
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("drafter", ["argmax", "drawn"])
def test_the_p_values_of_many_runs_are_uniform(drafter: str) -> None:
    """Too good a fit is a bug as well: a wrong number of degrees of freedom, or numbers that are not independent."""
    how = settings(1.0, "all limits", "repetition")
    told = outputs(how, drafter, 3, range(100 * 1000))
    p_values = [goodness_of_fit(told[start : start + 1000], how) for start in range(0, len(told), 1000)]
    assert uniform_p(p_values) > 0.01


def test_the_p_values_of_many_rows_are_uniform() -> None:
    """The rejection rule by itself, a hundred samples of it."""
    numbers = torch.Generator().manual_seed(3)
    size, num_rows = 16, 4000
    model = torch.rand(size, generator=numbers, dtype=torch.float64) ** 2
    model /= model.sum()
    draft = torch.rand(size, generator=numbers) ** 2
    draft /= draft.sum()
    p_values = []
    for _ in range(100):
        picked = torch.multinomial(draft, num_rows, replacement=True, generator=numbers).tolist()
        tokens = accept_or_replace(
            model.expand(num_rows, size),
            [Proposal(token_id=token, chances=draft, target_ids=None) for token in picked],
            accept_points=torch.rand(num_rows, generator=numbers, dtype=torch.float64),
            points=torch.rand(num_rows, generator=numbers, dtype=torch.float64),
        )
        seen = torch.bincount(torch.tensor(tokens), minlength=size)
        p_values.append(chi_square_p(float(((seen - model * num_rows) ** 2 / (model * num_rows)).sum()), size - 1))
    assert uniform_p(p_values) > 0.01
