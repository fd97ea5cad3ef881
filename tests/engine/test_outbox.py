"""The outbox: turns of a stream at once, what is between in beats, nothing lost, nothing twice."""

from __future__ import annotations

import threading
from dataclasses import replace

from engine.outbox import BACKGROUND_BEAT_S, LONGEST_BEAT_S, RESPONSES_PER_CORE_S, SHORTEST_BEAT_S, Outbox
from scheduler.request import ALONE, FinishReason, Round, TokenDelta


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def token(request_id: str, token_id: int = 5, end: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(request_id=request_id, sequence_index=0, token_ids=(token_id,), finish_reason=end)


def test_beginnings_and_ends_can_be_taken_at_once() -> None:
    outbox = Outbox(2, Clock())  # it stands still: a beat would never be over
    outbox.put([token("a")])
    assert outbox.take(60.0) == (token("a"),)
    outbox.put([token("a", 6)])
    outbox.put([token("a", 7, FinishReason.LENGTH)])
    assert [delta.token_ids for delta in outbox.take(60.0)] == [(6,), (7,)]
    outbox.put([token("a")])  # an id that comes back begins anew
    assert len(outbox.take(60.0)) == 1


def test_the_background_goes_in_slow_beats_and_in_one_piece() -> None:
    clock = Clock()
    outbox = Outbox(2, clock)
    outbox.expect_background("batch", 2)
    outbox.put([token("batch", 1)])
    assert outbox.take(60.0) == (token("batch", 1),), "the first beat is over at once"
    outbox.put([token("batch", 2), token("user", 7)])
    assert outbox.take(60.0) == (token("user", 7),), "a user's first token waits for nobody"
    outbox.put([token("batch", 3, FinishReason.LENGTH)])
    outbox.put([replace(token("batch", 8, FinishReason.STOP), sequence_index=1)])
    clock.now_s += BACKGROUND_BEAT_S
    assert outbox.take(60.0) == (
        replace(token("batch", end=FinishReason.LENGTH), token_ids=(2, 3)),
        replace(token("batch", 8, FinishReason.STOP), sequence_index=1),
    )
    outbox.put([token("batch", 9)])
    assert outbox.take(60.0) == (token("batch", 9),), "an id that comes back is another request's, at once"


def test_rounds_of_the_background_stand_for_all_its_tokens() -> None:
    clock = Clock()
    outbox = Outbox(2, clock)
    outbox.expect_background("batch", 1)
    outbox.put([token("batch", 1)])
    outbox.take(60.0)
    outbox.put([token("batch", 2)])
    outbox.put([replace(token("batch"), token_ids=(3, 4), rounds=(Round(3, 1, 2),))])
    outbox.put([token("batch", 5)])
    clock.now_s += BACKGROUND_BEAT_S
    (delta,) = outbox.take(60.0)
    assert delta.token_ids == (2, 3, 4, 5) and delta.rounds == (ALONE, Round(3, 1, 2), ALONE)


def test_nothing_of_the_background_is_lost_at_the_end() -> None:
    outbox = Outbox(2, Clock())
    outbox.expect_background("batch", 1)
    outbox.put([token("batch", 1)])
    outbox.take(60.0)
    outbox.put([token("batch", 2)])
    outbox.put([token("batch", 3)])
    outbox.close()
    assert not outbox.is_drained
    assert [delta.token_ids for delta in outbox.take(60.0)] == [(2, 3)]
    assert outbox.is_drained


def test_the_last_end_of_the_background_waits_for_no_beat() -> None:
    outbox = Outbox(2, Clock())
    for name in ("a", "b"):
        outbox.expect_background(name, 1)
    outbox.put([token("a"), token("b")])
    outbox.take(0.0)
    outbox.put([token("a", 6, FinishReason.STOP)])
    assert outbox.take(0.0) == (), "b goes on: more can come to what is held"
    outbox.put([token("b", 6, FinishReason.STOP)])
    assert {delta.request_id for delta in outbox.take(0.0)} == {"a", "b"}


def test_what_is_between_waits_for_the_beat() -> None:
    clock = Clock()
    outbox = Outbox(2, clock)
    assert outbox.beat_s == SHORTEST_BEAT_S
    outbox.put([token(str(i)) for i in range(20)])
    outbox.take(0.0)
    assert outbox.beat_s == 20 / (2 * RESPONSES_PER_CORE_S)
    outbox.put([token("0", 6)])
    taken: list[tuple[TokenDelta, ...]] = []
    taker = threading.Thread(target=lambda: taken.append(outbox.take(60.0)))
    clock.now_s += outbox.beat_s
    taker.start()
    taker.join(timeout=30.0)
    assert taken == [(token("0", 6),)]
    outbox.put([token(str(i)) for i in range(20, 200)])
    assert outbox.beat_s == LONGEST_BEAT_S
    outbox.put([token(str(i), 9, FinishReason.STOP) for i in range(200)])
    assert outbox.beat_s == SHORTEST_BEAT_S


def test_a_taker_past_the_beat_gets_the_next_token() -> None:
    clock = Clock()
    outbox = Outbox(2, clock)
    outbox.put([token("a")])
    outbox.take(0.0)
    clock.now_s += 1.0
    taken: list[tuple[TokenDelta, ...]] = []
    taker = threading.Thread(target=lambda: taken.append(outbox.take(60.0)))
    taker.start()
    outbox.put([token("a", 6)])
    taker.join(timeout=30.0)
    assert taken == [(token("a", 6),)]


def test_every_delta_is_taken_once_and_in_order() -> None:
    outbox = Outbox()
    steps = [[token(str(i), step) for i in range(3)] for step in range(300)]

    def run() -> None:
        for step in steps:
            outbox.put(step)
        outbox.close()

    thread = threading.Thread(target=run)
    thread.start()
    taken: list[TokenDelta] = []
    while not outbox.is_drained:
        taken.extend(outbox.take(1.0))
    thread.join()
    assert taken == [delta for step in steps for delta in step]
    assert outbox.take(60.0) == ()
