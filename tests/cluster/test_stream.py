from __future__ import annotations

import asyncio

import pytest

from cluster.sequence_stream import TextRules
from cluster.stream import RequestStream
from scheduler.request import FinishReason, TokenDelta, TokenLogprob
from sigmoe.errors import Overloaded, Unavailable

RULES = TextRules(pieces={1: b"a", 2: b"b"})


def stream(num_sequences: int = 1, max_pending: int = 100) -> RequestStream:
    return RequestStream(num_sequences, num_prompt_tokens=1, rules=RULES, max_pending=max_pending)


def delta(*token_ids: int, index: int = 0, reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(request_id="r", sequence_index=index, token_ids=token_ids, finish_reason=reason)


async def test_what_gathers_becomes_one_chunk_for_each_sequence() -> None:
    requests = stream(num_sequences=2)
    for _ in range(3):
        requests.push(delta(1, index=1))
        requests.push(delta(2, index=0))
    chunks = await requests.take()
    assert [(chunk.index, chunk.text) for chunk in chunks] == [(1, "aaa"), (0, "bbb")]


async def test_take_waits_for_news() -> None:
    requests = stream()
    waiting = asyncio.create_task(requests.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    requests.push(delta(1))
    (chunk,) = await waiting
    assert chunk.text == "a"


async def test_a_whole_answer_comes_in_one_piece() -> None:
    requests = RequestStream(2, num_prompt_tokens=1, rules=RULES, is_whole=True)
    waiting = asyncio.create_task(requests.take())
    for _ in range(2):
        requests.push(delta(1, index=0))
        requests.push(delta(2, index=1, reason=FinishReason.STOP))
        await asyncio.sleep(0)
        assert not waiting.done()
    requests.push(delta(1, index=0, reason=FinishReason.LENGTH))
    assert [(chunk.index, chunk.text) for chunk in await waiting] == [(0, "aaa"), (1, "b")]
    assert await requests.take() == []


async def test_a_whole_answer_that_fails_says_so_at_once() -> None:
    requests = RequestStream(1, num_prompt_tokens=1, rules=RULES, is_whole=True)
    requests.push(delta(1))
    requests.fail(Unavailable("gone"))
    assert [chunk.text for chunk in await requests.take()] == ["a"]
    with pytest.raises(Unavailable):
        await requests.take()


async def test_it_is_over_when_every_sequence_has_ended() -> None:
    requests = stream(num_sequences=2)
    requests.push(delta(1, index=0, reason=FinishReason.STOP))
    assert not requests.is_over
    requests.push(delta(1, index=1, reason=FinishReason.LENGTH))
    assert requests.is_over
    assert len(await requests.take()) == 2
    assert await requests.take() == []
    requests.push(delta(1, index=1))
    assert await requests.take() == []


async def test_a_failure_comes_after_what_has_gathered() -> None:
    requests = stream()
    requests.push(delta(1))
    requests.fail(Unavailable("gone"))
    requests.push(delta(2))
    (chunk,) = await requests.take()
    assert chunk.text == "a"
    with pytest.raises(Unavailable, match="gone"):
        await requests.take()


async def test_a_failure_wakes_who_waits() -> None:
    requests = stream()
    waiting = asyncio.create_task(requests.take())
    await asyncio.sleep(0)
    requests.fail(Unavailable("gone"))
    with pytest.raises(Unavailable):
        await waiting


async def test_the_first_failure_stays_and_an_ended_stream_does_not_fail() -> None:
    requests = stream()
    requests.fail(Unavailable("first"))
    requests.fail(Unavailable("second"))
    with pytest.raises(Unavailable, match="first"):
        await requests.take()
    ended = stream()
    ended.push(delta(reason=FinishReason.STOP))
    ended.fail(Unavailable("late"))
    await ended.take()
    assert await ended.take() == []


async def test_a_reader_that_never_reads_is_cut_off() -> None:
    requests = stream(max_pending=10)
    for _ in range(10):
        requests.push(delta(1))
    assert not requests.is_over
    requests.push(delta(1))
    assert requests.is_over
    for _ in range(1000):
        requests.push(delta(1))
    (chunk,) = await requests.take()
    assert chunk.token_ids == (1,) * 11, "nothing is kept after that"
    with pytest.raises(Overloaded, match="reads too slowly"):
        await requests.take()


async def test_reading_makes_room() -> None:
    requests = stream(max_pending=10)
    for _ in range(100):
        requests.push(delta(1, 1, 1, 1, 1))
        await requests.take()
    assert not requests.is_over


async def test_log_probabilities_count_by_their_candidates() -> None:
    requests = stream(max_pending=10)
    entry = TokenLogprob(token_id=1, logprob=0.0, top=tuple((i, 0.0) for i in range(20)))
    requests.push(TokenDelta(request_id="r", sequence_index=0, token_ids=(1,), logprobs=(entry,)))
    assert requests.is_over
