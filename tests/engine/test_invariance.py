"""Invariant 1: the tokens of a request do not depend on the machinery around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from scheduler.request import Request, SamplingParams, TokenDelta
from tests.engine.mixed_requests import ROOMY, alone, make_engine, mixed_requests, outcome_of, run_all


def test_the_requests_tell_tokens_apart() -> None:
    """Otherwise equal outcomes below would prove nothing."""
    tokens = [outcome[0] for outcome in alone().values()]
    assert all(len(output) == 10 for output in tokens)
    assert len(set(tokens)) == len(tokens) - 1, "the greedy request with two sequences alone repeats itself"


@pytest.mark.parametrize("order", [list, lambda r: r[::-1]], ids=["first to last", "last to first"])
def test_neighbours_do_not_matter(order: Callable[[list[Request]], list[Request]]) -> None:
    assert run_all(make_engine(ROOMY), order(mixed_requests())) == alone()


@pytest.mark.parametrize("max_rows", [1, 2, 7, 16])
def test_chunks_do_not_matter(max_rows: int) -> None:
    config = dataclasses.replace(ROOMY, max_rows_per_step=max_rows, max_sequences=min(max_rows, 8))
    assert run_all(make_engine(config), mixed_requests()) == alone()


@pytest.mark.parametrize("block_size", [1, 4])
def test_the_block_size_does_not_matter(block_size: int) -> None:
    config = dataclasses.replace(ROOMY, block_size=block_size, num_blocks=2048 // block_size)
    assert run_all(make_engine(config), mixed_requests()) == alone()


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_cached_prefixes_do_not_matter(block_size: int) -> None:
    config = dataclasses.replace(ROOMY, block_size=block_size, num_blocks=4096 // block_size, prefix_cache=True)
    engine = make_engine(config)
    for _ in range(2):
        assert run_all(engine, mixed_requests()) == alone()
    assert engine.stats().prefix_hit_tokens > 0


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_preemption_does_not_matter(prefix_cache: bool) -> None:
    # 20 blocks of 4 hold the longest sequence (71 tokens) and little else.
    config = dataclasses.replace(
        ROOMY, block_size=4, num_blocks=20, max_rows_per_step=32, max_sequences=6, prefix_cache=prefix_cache
    )
    engine = make_engine(config)
    assert run_all(engine, mixed_requests()) == alone()
    assert engine.stats().num_preemptions > 0


def test_arriving_while_others_run_does_not_matter() -> None:
    engine = make_engine(dataclasses.replace(ROOMY, prefix_cache=True, max_rows_per_step=24))
    deltas: list[TokenDelta] = []
    for request in mixed_requests():
        engine.add(request)
        deltas += [delta for _ in range(2) for delta in engine.step()]
    while engine.has_work:
        deltas += engine.step()
    assert outcome_of(deltas) == alone()


def test_a_cancelled_neighbour_does_not_matter() -> None:
    engine = make_engine(dataclasses.replace(ROOMY, prefix_cache=True, block_size=4))
    doomed = Request(request_id="doomed", prompt=tuple(range(40, 60)), sampling=SamplingParams(max_tokens=90))
    deltas: list[TokenDelta] = []
    engine.add(doomed)
    for request in mixed_requests():
        engine.add(request)
    for step in range(4):
        if step == 2:
            engine.abort("doomed")
        deltas += engine.step()
    while engine.has_work:
        deltas += engine.step()
    assert outcome_of([delta for delta in deltas if delta.request_id != "doomed"]) == alone()


def test_the_rest_of_a_resumed_output_is_the_same() -> None:
    """What another rank streamed before it died counts as output: penalties, seeds and limits go on from there."""
    for request in mixed_requests():
        for index in range(request.num_sequences):
            tokens, logprobs = alone()[request.request_id, index]
            rest = dataclasses.replace(request, num_sequences=1, first_sequence_index=index, resumed=tokens[:4])
            got = run_all(make_engine(ROOMY), [rest])
            assert got == {(request.request_id, index): (tokens[4:], logprobs[4:])}
