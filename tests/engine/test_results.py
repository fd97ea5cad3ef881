"""Logits to step results: which row belongs to whom, and what of the request reaches the sampler."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.results import results_from_logits
from scheduler.plan import SequencePlan
from scheduler.request import SamplingParams

VOCAB = 16
GREEDY = SamplingParams(max_tokens=9, temperature=0.0)


def _sequence(num_rows: int = 1, *, sampled: int = 1, **changes: object) -> SequencePlan:
    plan = SequencePlan(
        sequence_id=0,
        token_ids=(1,) * num_rows,
        start=0,
        block_table=(0,),
        num_logit_rows=sampled,
        sampling=GREEDY,
        sequence_index=0,
        output_index=0,
        stop_token_ids=(0,),
    )
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def _peaks(*tokens: int) -> torch.Tensor:
    """Logits whose row r prefers tokens[r]; token 0 comes second everywhere, token 1 third."""
    logits = torch.zeros(len(tokens), VOCAB)
    logits[:, 0], logits[:, 1] = 2.0, 1.0
    logits[torch.arange(len(tokens)), list(tokens)] = 3.0
    return logits


def test_rows_go_to_their_sequences() -> None:
    scored = _sequence(3, prompt_logprob_targets=(7, 8), sampling=dataclasses.replace(GREEDY, num_prompt_logprobs=1))
    chunk = _sequence(4, sampled=0)
    results = results_from_logits([_sequence(), chunk, scored, _sequence()], _peaks(5, 7, 9, 6, 4))
    assert [result.token_ids for result in results] == [(5,), (), (6,), (4,)]
    first, second = results[2].prompt_logprobs
    expected = torch.log_softmax(_peaks(7, 9), dim=-1)
    assert (first.token_id, second.token_id) == (7, 8)
    assert first.logprob == pytest.approx(expected[0, 7].item())
    assert second.logprob == pytest.approx(expected[1, 8].item())
    assert first.top[0][0] == 7 and second.top[0][0] == 9


def test_a_chunk_may_be_scored_without_being_sampled() -> None:
    sampling = dataclasses.replace(GREEDY, num_prompt_logprobs=0)
    chunk = _sequence(2, sampled=0, prompt_logprob_targets=(3, 4), sampling=sampling)
    (result,) = results_from_logits([chunk], _peaks(3, 3))
    assert result.token_ids == () and [score.token_id for score in result.prompt_logprobs] == [3, 4]
    assert all(score.top == () for score in result.prompt_logprobs)


def test_no_sequences_have_no_results() -> None:
    assert results_from_logits([], torch.zeros(0, VOCAB)) == ()


def test_stop_tokens_are_masked_until_min_tokens() -> None:
    sampling = dataclasses.replace(GREEDY, min_tokens=2)
    sequences = [_sequence(sampling=sampling, output_index=index) for index in (0, 1, 2)]
    results = results_from_logits(sequences, _peaks(0, 0, 0))
    assert [result.token_ids for result in results] == [(1,), (1,), (0,)]


def test_penalties_see_the_history() -> None:
    sampling = dataclasses.replace(GREEDY, presence_penalty=2.5)
    sequence = _sequence(sampling=sampling, history=[5, 5, 0], num_prompt_tokens=2)
    (result,) = results_from_logits([sequence], _peaks(5))
    assert result.token_ids == (5,), "presence counts the output alone, and 5 is in the prompt"
    sequence = _sequence(sampling=sampling, history=[0, 0, 5], num_prompt_tokens=2)
    (result,) = results_from_logits([sequence], _peaks(5))
    assert result.token_ids == (0,)


def test_logprobs_come_when_asked_for() -> None:
    with_top = _sequence(sampling=dataclasses.replace(GREEDY, num_logprobs=2))
    results = results_from_logits([_sequence(), with_top], _peaks(5, 6))
    assert results[0].logprobs == ()
    (score,) = results[1].logprobs
    assert score.token_id == 6 and [token for token, _ in score.top] == [6, 0]


def test_a_row_that_is_not_finite_ends_its_sequence_alone() -> None:
    logits = _peaks(5, 6)
    logits[0, 3] = float("nan")
    results = results_from_logits([_sequence(), _sequence()], logits)
    assert "finite" in results[0].error
    assert results[1].error == "" and results[1].token_ids == (6,)


def test_drafts_are_accepted_as_long_as_they_are_what_was_sampled() -> None:
    right = _sequence(sampled=3, token_ids=(1, 5, 7))
    wrong = _sequence(sampled=3, token_ids=(1, 6, 8))
    half = _sequence(sampled=3, token_ids=(1, 6, 9))
    results = results_from_logits([right, wrong, half], _peaks(5, 7, 9, 5, 8, 4, 6, 8, 4))
    assert [result.token_ids for result in results] == [(5, 7, 9), (5,), (6, 8)]
