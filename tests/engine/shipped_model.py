"""The model that ships, whose draft models were trained: requests of which drafts are accepted, and what they yield."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from benchmarks.speculation import read_prompts
from engine.engine import Engine
from scheduler.request import DraftMethod, Request, SamplingParams
from tests.engine.checkpoints import SHIPPED, shipped_folder
from tests.engine.mixed_requests import ROOMY, Outcome, alone, make_engine, mixed_requests, run_all

QUESTIONS = Path(__file__).parents[2] / "sigmoe" / "loadtest" / "data" / "medical_questions.jsonl"


@functools.cache
def questions() -> tuple[Request, ...]:
    """Chats with a common beginning; greedy and drawn, with and without penalties, one of them twice."""
    greedy = SamplingParams(max_tokens=14, temperature=0.0, ignore_eos=True, num_logprobs=1)
    drawn = dataclasses.replace(greedy, temperature=0.7, seed=3)
    narrow = dataclasses.replace(drawn, seed=4, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.05)
    ways = (greedy, drawn, dataclasses.replace(greedy, repetition_penalty=1.05), narrow, greedy, drawn)
    prompts = read_prompts(QUESTIONS, shipped_folder())
    return tuple(
        Request(request_id=f"question {number}", prompt=prompt, sampling=how, num_sequences=1 + number // 5)
        for number, (prompt, how) in enumerate(zip(prompts, ways, strict=False))
    )


@functools.cache
def answers() -> Outcome:
    """Every question by itself, in a fresh engine that does not draft."""
    outcome: Outcome = {}
    for request in questions():
        outcome |= run_all(make_engine(ROOMY, SHIPPED), [request])
    return outcome


def requests_for(shape: str) -> list[Request]:
    """What to ask the model of a shape, or the one that ships."""
    return list(questions()) if shape == SHIPPED else mixed_requests()


def outcome_for(shape: str) -> Outcome:
    """What that yields, each by itself."""
    return answers() if shape == SHIPPED else alone(shape)


def demand_acceptance(engine: Engine, method: DraftMethod, max_drafts: int) -> None:
    """Drafts of the model that ships were accepted; those of a draft model about as often as it is good for.

    Of first drafts that is 0.25 to 0.6 here, and less than 0.2 where rows are paired with wrong tokens or states.
    """
    counts = engine.stats().drafts
    assert sum(counts.accepted) > 0, f"{counts.drafted} drafts, and none was accepted"
    if method.has_kv:
        assert counts.accepted[0] >= 0.2 * counts.drafted[0], f"of {counts.drafted} drafts {counts.accepted} accepted"
        assert max_drafts == 1 or counts.accepted[1] > 0, f"of {counts.drafted} drafts {counts.accepted} accepted"
