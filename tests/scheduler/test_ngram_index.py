"""The index of a sequence's n-grams: what a search through all tokens finds, at the cost of the new ones."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.ngram_index import NgramIndex
from tests.oracle.plain_look_up import plain_look_up


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    """Random tokens of few kinds, and pieces of them again."""
    kinds = st.integers(0, draw(st.sampled_from([0, 1, 2, 6, 40])))
    text = draw(st.lists(kinds, min_size=1, max_size=60))
    for _ in range(draw(st.integers(0, 3))):
        first = draw(st.integers(0, len(text) - 1))
        text += text[first : first + draw(st.integers(1, 30))] + draw(st.lists(kinds, max_size=3))
    return text


@settings(max_examples=300, deadline=None)
@given(text=texts(), longest=st.sampled_from([1, 2, 3, 4, 9, 64]), data=st.data())
def test_it_finds_what_a_search_finds(text: list[int], longest: int, data: st.DataObject) -> None:
    shortest, num = data.draw(st.integers(1, longest)), data.draw(st.integers(0, 7))
    index, known = NgramIndex(), 0
    while known < len(text):
        step = data.draw(st.integers(1, 5))
        index.extend(text[known : known + step], longest)
        known = min(known + step, len(text))
        assert len(index) == known
        expected = plain_look_up(text[:known], num, longest=longest, shortest=shortest)
        assert index.look_up(num, shortest) == expected, f"after {text[:known]}"


def test_ids_up_to_the_widest_and_a_long_text() -> None:
    numbers = random.Random(5)
    widest = 2**31 - 1
    text = [numbers.choice([widest, widest - 1, 0, numbers.randrange(widest)]) for _ in range(3000)]
    index = NgramIndex()
    for known, token_id in enumerate(text, start=1):
        index.extend((token_id,), 4)
        if known % 97 == 0:
            assert index.look_up(5, 2) == plain_look_up(text[:known], 5, longest=4, shortest=2)


def test_an_empty_index_finds_nothing() -> None:
    index = NgramIndex()
    index.extend((), 4)
    assert index.look_up(3, 1) == () and len(index) == 0


@pytest.mark.parametrize("num_kinds", [1, 2, 30, 100_000])
@pytest.mark.parametrize("longest", [4, 64])
def test_a_token_adds_two_nodes_at_most(longest: int, num_kinds: int) -> None:
    numbers = random.Random(num_kinds)
    text = [numbers.randrange(num_kinds) for _ in range(2000)]
    index = NgramIndex()
    index.extend(text + text, longest)
    assert len(index._ends) == len(index._lengths) == len(index._children) + 1 <= 2 * len(index) + 1


class Read(list[int]):
    """Tokens that count how often they are read."""

    num_reads = 0

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        self.num_reads += 1
        return super().__getitem__(place)


def test_a_token_costs_as_many_comparisons_as_n_grams_are_long() -> None:
    """Whatever came before it: here everything did."""
    for longest in (4, 64):
        index = NgramIndex()
        index.extend([7] * 5000 + [8] + [7] * 5000, longest)
        read = index._tokens = Read(index._tokens)  # type: ignore[assignment]
        index.extend((7,), longest)
        # Two at each comparison, and one where a node is looked for.
        assert read.num_reads <= 3 * longest
