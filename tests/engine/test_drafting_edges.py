"""Where an output ends inside a round, at the engine: out comes what plain decoding yields, and no token more."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from engine.engine import Engine
from scheduler.request import DraftMethod, FinishReason, Request, SamplingParams, TokenDelta
from tests.engine.drafting_engines import Foreseeing, draft_model, drafting_engine
from tests.engine.mixed_requests import ROOMY, alone, make_engine, mixed_requests

SHAPE = "C"
NUM_DRAFTS = 3
REQUEST = next(request for request in mixed_requests() if request.request_id == "shared a")  # greedy, with penalties
PLAIN = alone(SHAPE)["shared a", 0][0]
CONFIG = dataclasses.replace(
    ROOMY,
    draft_method=DraftMethod.EAGLE3,
    model_method=DraftMethod.EAGLE3,
    max_drafts=NUM_DRAFTS,
    adaptive_drafts=False,
)


def drafting(drafts: str, max_context: int = CONFIG.max_context) -> Engine:
    config = dataclasses.replace(CONFIG, max_context=max_context)
    if drafts == "right":  # rounds of four tokens, so that ends fall on first, last and bonus tokens
        return drafting_engine(config, SHAPE, drafter=Foreseeing(config, SHAPE, lambda token: token))[0]
    return drafting_engine(config, SHAPE, draft_model(DraftMethod.EAGLE3, SHAPE))[0]


def answer(engine: Engine, request: Request) -> tuple[list[int], TokenDelta]:
    """The tokens of a request and its last delta."""
    engine.add(request)
    tokens: list[int] = []
    while engine.has_work:
        for delta in engine.step():
            tokens += delta.token_ids
            last = delta
    return tokens, last


def changed(request: Request, **fields: Any) -> Request:
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, **fields))


@pytest.mark.parametrize("drafts", ["right", "random"])
@pytest.mark.parametrize("place", range(1, len(PLAIN)))
def test_a_stop_token_ends_the_output_wherever_it_falls_in_a_round(place: int, drafts: str) -> None:
    request = changed(REQUEST, stop_token_ids=(PLAIN[place],))
    expected, plain_end = answer(make_engine(ROOMY, SHAPE), request)
    tokens, end = answer(drafting(drafts), request)
    assert tokens == expected == list(PLAIN[: PLAIN.index(PLAIN[place]) + 1])
    assert end.finish_reason is plain_end.finish_reason is FinishReason.STOP
    assert end.usage is not None and end.usage.num_output_tokens == len(tokens)


@pytest.mark.parametrize("drafts", ["right", "random"])
@pytest.mark.parametrize("max_tokens", range(1, len(PLAIN) + 1))
def test_exactly_as_many_tokens_as_asked_for(max_tokens: int, drafts: str) -> None:
    tokens, end = answer(drafting(drafts), changed(REQUEST, max_tokens=max_tokens))
    assert tuple(tokens) == PLAIN[:max_tokens] and end.finish_reason is FinishReason.LENGTH
    # The first token comes from the prompt, every other one from a round or a plain step.
    assert sum(one.num_committed for one in end.rounds) <= max_tokens - 1


@pytest.mark.parametrize("drafts", ["right", "random"])
@pytest.mark.parametrize("num_left", range(1, 9))
def test_the_context_ends_inside_a_round(num_left: int, drafts: str) -> None:
    engine = drafting(drafts, max_context=len(REQUEST.prompt) + num_left)
    tokens, end = answer(engine, REQUEST)
    assert tuple(tokens) == PLAIN[:num_left] and end.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("min_tokens", [2, 4, 5, 7])
def test_no_stop_before_min_tokens(min_tokens: int) -> None:
    """Every row of a verification masks by its own place in the output, not by the round's."""
    request = changed(REQUEST, stop_token_ids=PLAIN[1:4], min_tokens=min_tokens)
    expected = answer(make_engine(ROOMY, SHAPE), request)[0]
    assert len(expected) > min_tokens - 1
    for drafts in ("right", "random"):
        assert answer(drafting(drafts), request)[0] == expected


@pytest.mark.parametrize("drafts", ["right", "random"])
@pytest.mark.parametrize("num_streamed", [1, 2, 5, 9])
def test_a_request_that_lost_its_rank_goes_on_from_the_tokens_it_streamed(num_streamed: int, drafts: str) -> None:
    """Whatever was drafted there, and whatever the round under way would have brought, is gone and not missed."""
    first = drafting(drafts)
    first.add(REQUEST)
    streamed: list[int] = []
    while len(streamed) < num_streamed:
        streamed += [token for delta in first.step() for token in delta.token_ids]
    first.plan()  # of the round that the rank died in
    rest, _ = answer(drafting(drafts), dataclasses.replace(REQUEST, resumed=tuple(streamed)))
    assert (*streamed, *rest) == PLAIN


@pytest.mark.parametrize("seed", range(4))
def test_log_probabilities_come_with_every_token_of_a_round(seed: int) -> None:
    how = SamplingParams(
        max_tokens=12, temperature=0.8, seed=seed, top_p=0.9, repetition_penalty=1.1, num_logprobs=3, ignore_eos=True
    )
    request = Request(request_id="scored", prompt=REQUEST.prompt, sampling=how)
    scores = []
    for engine in (make_engine(ROOMY, SHAPE), drafting("random")):
        engine.add(request)
        deltas: list[TokenDelta] = []
        while engine.has_work:
            deltas += engine.step()
        assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
        scores.append([score for delta in deltas for score in delta.logprobs])
    plain, drafted = scores
    assert [score.token_id for score in drafted] == [score.token_id for score in plain]
    for mine, theirs in zip(drafted, plain, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
