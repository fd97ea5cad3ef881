from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.stop_strings import StopAutomaton, StopMatcher

words = st.text("ab", min_size=1, max_size=5)


def matched(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(StopAutomaton(stops))
    shown = "".join(matcher.feed(piece) for piece in pieces)
    return shown + matcher.flush(), matcher.has_matched


def oracle(stops: list[str], text: str) -> tuple[str, bool]:
    """Try every end in turn; of the stop strings that end there, the longest."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


@given(st.lists(words, min_size=1, max_size=4), st.lists(st.text("abc", max_size=4), max_size=8))
def test_pieces_make_no_difference_to_the_oracle(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert matched(stops, pieces) == matched(stops, [text]) == matched(stops, list(text)) == oracle(stops, text)


@given(st.lists(words, min_size=1, max_size=4), st.lists(st.text("abc", max_size=4), max_size=8))
def test_what_is_held_back_begins_a_stop_string_and_nothing_more_is(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(StopAutomaton(stops))
    shown, text = "", ""
    for piece in pieces:
        shown, text = shown + matcher.feed(piece), text + piece
        if matcher.has_matched:
            return
        held = text[len(shown) :]
        begun = [k for k in range(len(text) + 1) if any(s.startswith(text[len(text) - k :]) for s in stops)]
        assert len(held) == max(begun)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["\n\n"], ["one\n", "\ntwo"], "one"),
        (["<end>"], ["a<en", "d", "> b"], "a"),
        (["<end>"], ["a<en", "dless> b"], "a<endless> b"),
        (["abcd", "bc"], ["xabcd"], "xa"),
        (["bc", "abc"], ["xabc"], "x"),
        (["哮喘"], ["这是哮", "喘"], "这是"),
        (["x"], ["x"], ""),
    ],
)
def test_examples(stops: list[str], pieces: list[str], shown: str) -> None:
    assert matched(stops, pieces)[0] == shown


def test_nothing_follows_a_match() -> None:
    matcher = StopMatcher(StopAutomaton(["x"]))
    assert [matcher.feed("axb"), matcher.feed("c"), matcher.flush()] == ["a", "", ""]


def test_text_that_always_almost_matches_stays_linear() -> None:
    matcher = StopMatcher(StopAutomaton(["a" * 255 + "b"]))
    assert sum(len(matcher.feed("a")) for _ in range(20_000)) == 20_000 - 255
