"""Prompt look-up: what followed the last tokens when they came before."""

from __future__ import annotations

from collections.abc import Sequence


def look_up(tokens: Sequence[int], num: int, *, longest: int, shortest: int) -> tuple[int, ...]:
    """Up to `num` tokens that followed the most recent earlier occurrence of the last n tokens.

    n runs from `longest` down to `shortest`; the first that occurs decides. Nothing where none does. The search walks
    backwards over the list once for each n: microseconds for a thousand tokens, against milliseconds for a step.
    """
    known = list(tokens)
    for size in range(min(longest, len(known) - 1), shortest - 1, -1):
        tail, last = known[-size:], known[-1]
        end = len(known) - 1  # exclusive end of the place looked at
        while end >= size:
            # The last token of the match stands before `end`; list.index would search forwards.
            if known[end - 1] == last and known[end - size : end] == tail:
                return tuple(known[end : end + num])
            end -= 1
    return ()
