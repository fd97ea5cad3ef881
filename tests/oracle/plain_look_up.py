"""Prompt look-up as its definition reads: a search backwards through the whole list for each length."""

from __future__ import annotations

from collections.abc import Sequence


def plain_look_up(tokens: Sequence[int], num: int, *, longest: int, shortest: int) -> tuple[int, ...]:
    """Up to `num` tokens that followed the most recent earlier occurrence of the last n tokens.

    n runs from `longest` down to `shortest`; the first that occurs decides. Nothing where none does.
    """
    known = list(tokens)
    for size in range(min(longest, len(known) - 1), shortest - 1, -1):
        tail = known[-size:]
        for end in range(len(known) - 1, size - 1, -1):
            if known[end - size : end] == tail:
                return tuple(known[end : end + num])
    return ()
