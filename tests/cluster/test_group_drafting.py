"""Drafting in expert-parallel groups: the same tokens, the same acceptance, and no rank waits for another for ever."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.speculation import PROMPTS, read_prompts
from cluster.local_executor import LocalExecutor
from engine.config import SpeculationConfig
from scheduler.draft_tally import DraftTally
from scheduler.request import DraftCounts, DraftMethod, Request, SamplingParams, TokenDelta
from tests.cluster.executor_contract import started, tiny_config, tokens
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import eagle3_folder
from tests.engine.mixed_requests import alone, mixed_requests, outcome_of

pytestmark = pytest.mark.slow

SHAPE = "C"
MODEL = Path(__file__).parents[2] / "models" / "sigmoe-demo"


def counts_of(deltas: Iterable[TokenDelta]) -> dict[tuple[str, int], DraftCounts]:
    """What drafting brought to each sequence."""
    tallies: dict[tuple[str, int], DraftTally] = defaultdict(DraftTally)
    for delta in deltas:
        tallies[delta.request_id, delta.sequence_index].take(delta.rounds, len(delta.token_ids))
    return {key: tally.counts() for key, tally in tallies.items()}


async def drafted(method: DraftMethod, num_ranks: int, placed: list[tuple[int, Request]]) -> list[DraftCounts]:
    """Run requests on their ranks; their tokens must be those of plain decoding. Returns what drafting brought."""
    config = dataclasses.replace(
        tiny_config(),
        model_dir=str(tiny_checkpoint(SHAPE)),
        num_blocks=256,
        max_context=128,
        max_rows_per_step=512,  # so that no draft falls to the budget
        prefix_cache=False,
        speculation=SpeculationConfig(
            method=method, draft_dir=str(eagle3_folder(SHAPE)), max_drafts=3, adaptive=False, debug=True
        ),
    )
    async with started(LocalExecutor(config, num_ranks)) as group:
        for rank, request in placed:
            await group.executor.submit(rank, request)
        deltas = await group.collect({request.request_id: request.num_sequences for _, request in placed})
        known = {request.request_id for request in mixed_requests()}
        told: list[TokenDelta] = [delta for name, of_request in deltas.items() if name in known for delta in of_request]
        expected = {key: value for key, value in alone(SHAPE).items() if key[0] in {name for name in deltas}}
        assert outcome_of(told) == expected
        return list(counts_of(told).values())


async def shipped(method: DraftMethod, num_ranks: int) -> dict[str, tuple[tuple[int, ...], DraftCounts]]:
    """What the shipped model answers in a group of this size, and what its draft model brought."""
    config = dataclasses.replace(
        tiny_config(),
        model_dir=str(MODEL),
        num_blocks=256,
        max_context=256,
        max_rows_per_step=512,
        prefix_cache=False,
        speculation=SpeculationConfig(method=method, max_drafts=3, adaptive=False, debug=True),
    )
    greedy = SamplingParams(max_tokens=24, temperature=0.0)
    drawn = dataclasses.replace(greedy, temperature=0.8, repetition_penalty=1.05)
    async with started(LocalExecutor(config, num_ranks)) as group:
        for number, prompt in enumerate(read_prompts(PROMPTS, MODEL)[:8]):
            sampling = dataclasses.replace(drawn if number % 2 else greedy, seed=number)
            await group.executor.submit(
                number % num_ranks, Request(request_id=str(number), prompt=prompt, sampling=sampling)
            )
        deltas = await group.collect({str(number): 1 for number in range(8)})
    return {name: (tokens(told), counts_of(told)[name, 0]) for name, told in deltas.items()}


@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP])
async def test_acceptance_does_not_depend_on_the_group(method: DraftMethod) -> None:
    """With draft models that were trained: of random ones nothing is accepted, in a group of any size."""
    single = await shipped(method, 1)
    for _, counts in single.values():
        assert sum(counts.accepted) > 0
    assert await shipped(method, 2) == single
    assert await shipped(method, 4) == single


@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP])
async def test_idle_prefilling_and_full_ranks_go_along(method: DraftMethod) -> None:
    """One rank drafts, one has a prompt, one a request at its context's limit with other drafts, one nothing."""
    requests = {request.request_id: request for request in mixed_requests()}
    brief = SamplingParams(max_tokens=1, temperature=0.0)
    full = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    placed = [
        (0, requests["shared alone"]),
        (0, requests["short"]),
        (1, Request(request_id="a prompt", prompt=tuple(range(100, 160)), sampling=brief)),
        (2, Request(request_id="at the limit", prompt=tuple(range(1, 121)), sampling=full, max_drafts=1)),
    ]
    assert await drafted(method, 4, placed)
