"""Where the last tokens of a sequence came before: an index that grows with it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class NgramIndex:
    """The last n tokens at every place of one sequence, n up to `longest`, and the latest place behind each.

    A compressed trie over what stands before each place, read backwards: a node is an n-gram with all that end alike
    and go back alike, and knows the latest place behind it. A token more is one walk from the root, as deep as what
    ends with it came before: at most `longest` comparisons, some 2 us (12 where all 64 are alike), however long the
    sequence is. It adds two nodes at most; 130 bytes a token of text that repeats little, less where it repeats more.
    """

    def __init__(self) -> None:
        self._tokens = array("i")
        self._lengths, self._ends = array("i", [0]), array("i", [0])  # of each node: its n, and the latest place
        self._children: dict[int, int] = {}  # by node and the token before what it holds
        self._match = (0, 0)  # how many of the last tokens came before, and the latest place behind them

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, token_ids: Iterable[int], longest: int) -> None:
        """Add tokens behind those it has. `longest` is the same in every call."""
        for token_id in token_ids:
            self._tokens.append(token_id)
            self._match = self._enter(longest)

    def look_up(self, num: int, shortest: int) -> tuple[int, ...]:
        """Up to `num` tokens that followed the most recent earlier occurrence of the last n tokens.

        n runs from `longest` down to `shortest`; the first that occurs decides. Nothing where none does.
        """
        length, end = self._match
        return tuple(self._tokens[end : end + num]) if length >= shortest else ()

    def _enter(self, longest: int) -> tuple[int, int]:
        """Put the place behind the last token into the trie; returns the longest n-gram found on the way, and where."""
        tokens, lengths, ends, children = self._tokens, self._lengths, self._ends, self._children
        here = len(tokens)
        limit = min(longest, here)
        node = length = found = 0
        while length < limit:
            edge = node << 32 | tokens[here - 1 - length]
            child = children.get(edge)
            if child is None:
                children[edge] = self._new_node(limit, here)
                break
            found = ends[child]
            length += 1
            while length < lengths[child] and tokens[here - 1 - length] == tokens[found - 1 - length]:
                length += 1
            if length < lengths[child]:  # they part between two nodes
                middle = children[edge] = self._new_node(length, here)
                children[middle << 32 | tokens[found - 1 - length]] = child
                children[middle << 32 | tokens[here - 1 - length]] = self._new_node(limit, here)
                break
            ends[child] = here
            node = child
        return length, found

    def _new_node(self, length: int, end: int) -> int:
        self._lengths.append(length)
        self._ends.append(end)
        return len(self._ends) - 1
