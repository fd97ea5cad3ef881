"""Prompt look-up in the engine: every draft is what a search through prompt and output finds, at every step."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any, cast

import pytest

from engine.config import SpeculationConfig
from engine.drafters.ngram import with_look_ups
from engine.runner import Foresight, Runner, nothing_foreseen
from scheduler.plan import SequenceResult, StepPlan, StepResult, StepShape
from scheduler.request import DraftMethod, Request, SamplingParams
from scheduler.scheduler import SchedulerConfig
from scheduler.sequence import Sequence
from tests.engine.drafting_engines import drafting_engine
from tests.engine.graph_engines import drafting, graph_engine, plain_requests
from tests.engine.mixed_requests import ROOMY, alone, mixed_requests, outcome_of, run_all
from tests.oracle.plain_look_up import plain_look_up

SHAPE = "C"
LIMITS = SpeculationConfig(method=DraftMethod.NGRAM, ngram_shortest=1)


class Searching:
    """A runner whose drafts are compared with those of a search."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.num_found = self.num_wanted = 0

    def shape(self, plan: StepPlan) -> StepShape | None:
        return self._runner.shape(plan)

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        return self._runner.under_way(plan)

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        result = self._runner.run(plan, foresee)
        for planned, outcome in zip(plan.sequences, result.sequences, strict=True):
            expected = plain_look_up(
                [*planned.history, *outcome.token_ids],
                planned.num_proposals,
                longest=LIMITS.ngram_longest,
                shortest=LIMITS.ngram_shortest,
            )
            assert outcome.draft_ids == expected
            num_run = planned.start + len(planned.token_ids)
            assert planned.ngrams is not None and len(planned.ngrams) >= min(num_run, len(planned.history))
            self.num_found += len(expected)
            self.num_wanted += planned.num_proposals
        return result


@pytest.mark.parametrize("is_recorded", [False, True], ids=["as it is", "in buckets"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_rows_per_step": 7, "max_sequences": 5},
        {"block_size": 4, "num_blocks": 20, "max_rows_per_step": 32, "max_sequences": 6, "prefix_cache": True},
    ],
    ids=["roomy", "chunks", "preemptions and prefix hits"],
)
def test_drafts_are_what_a_search_finds(changes: dict[str, Any], is_recorded: bool) -> None:
    """Of several sequences of a request, too, through chunks and preemptions, and of a request that is resumed."""
    config: SchedulerConfig = dataclasses.replace(drafting(ROOMY, DraftMethod.NGRAM, 3), **changes)
    world = graph_engine(config, SHAPE)
    engine = world.engine if is_recorded else drafting_engine(config, SHAPE)[0]
    searching = cast(Any, engine)._runner = Searching(cast(Any, engine)._runner)
    expected = {key: tokens for key, (tokens, _) in alone(SHAPE).items()}
    requests = plain_requests()[:-2] if is_recorded else mixed_requests()  # the penalised ones come last
    for _ in range(2):
        outcome = run_all(engine, requests)
        assert len(outcome) >= 8 and all(tokens == expected[key] for key, (tokens, _) in outcome.items())
    assert any(world.runner.ran) is is_recorded
    stats = engine.stats()
    assert 0 < searching.num_found < searching.num_wanted and sum(stats.drafts.accepted) > 0
    assert (stats.num_preemptions > 0) is (config.num_blocks == 20)
    tokens = expected["long", 0]
    resumed = dataclasses.replace(mixed_requests()[5], num_sequences=1, resumed=tokens[:4])
    assert run_all(engine, [resumed])["long", 0][0] == tokens[4:]


def test_an_index_goes_with_its_sequence() -> None:
    engine, _ = drafting_engine(drafting(ROOMY, DraftMethod.NGRAM, 3), SHAPE)
    indexes: list[weakref.ref[Any]] = []

    def start() -> None:
        for request in mixed_requests():
            engine.add(request)
        deltas = engine.step()
        sequences: list[Sequence] = list(cast(Any, engine)._scheduler._live.running)
        indexes.extend(weakref.ref(sequence.ngrams) for sequence in sequences if sequence.ngrams is not None)
        assert len(indexes) == len(outcome_of(deltas)) == 10

    start()
    engine.abort("long")
    while engine.has_work:
        engine.step()
    engine.step()
    gc.collect()
    assert not any(index() for index in indexes)


class Unread(list[int]):
    """Tokens that tell when more than a few of them are read."""

    num_read = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        raise AssertionError("all of the history is read")

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        found = super().__getitem__(place)
        self.num_read += len(found) if isinstance(place, slice) else 1
        return found


def step_of(sequence: Sequence, num_rows: int, result: SequenceResult) -> tuple[SequenceResult, int]:
    """What a step of so many rows drafts, and how many tokens it reads for that."""
    planned, tokens = sequence.drafted_rows(num_rows, DraftMethod.NGRAM, 0, 3), cast(Unread, sequence.tokens)
    tokens.num_read = 0
    (drafted,) = with_look_ups([planned], [result], LIMITS)
    sequence.num_computed += num_rows
    tokens += result.token_ids
    return drafted, tokens.num_read


def sequence_of(tokens: list[int]) -> Sequence:
    request = Request(request_id="r", prompt=tuple(tokens), sampling=SamplingParams(max_tokens=9))
    return Sequence(
        sequence_id=1, index=0, request=request, turn=0.0, arrival_s=0.0, stop_token_ids=(), tokens=Unread(tokens)
    )


def test_a_step_reads_what_is_new_and_catches_up_little_by_little() -> None:
    """A long beginning that is found in the prefix cache holds no step up: nothing is drafted before it is known."""
    text = [n * n % 977 for n in range(6000)]
    sequence = sequence_of(text[:5000])
    assert step_of(sequence, 10, SequenceResult()) == (SequenceResult(), 10), "many prompts share a step"
    sequence.num_computed = 2000
    assert step_of(sequence, 2500, SequenceResult()) == (SequenceResult(), 2500)
    assert step_of(sequence, 499, SequenceResult()) == (SequenceResult(), 1024)
    found = [step_of(sequence, 1, SequenceResult(token_ids=(token_id,))) for token_id in text[5000:5003]]
    assert [num_read for _, num_read in found] == [1024, 443, 0]
    assert [drafted.draft_ids for drafted, _ in found] == [
        (),
        *(plain_look_up(text[:known], 3, longest=4, shortest=1) for known in (5002, 5003)),
    ]
    assert len(found[-1][0].draft_ids) == 3


def test_nothing_is_looked_up_where_a_step_went_wrong() -> None:
    sequence = sequence_of([1, 2, 3, 1, 2, 3])
    failed = SequenceResult(token_ids=(1,), error="no numbers")
    assert step_of(sequence, 6, failed)[0] == failed
