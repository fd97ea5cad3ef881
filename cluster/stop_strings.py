"""Stop strings in a stream of text, wherever the pieces end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopAutomaton:
    """The stop strings of a request as one Aho-Corasick automaton, shared by its sequences.

    A state stands for the longest suffix of the text that begins a stop string; `depths[state]` is its length, and
    `matches[state]` the length of the longest stop string that ends there (0: none). Each character costs amortised
    constant time, however many strings there are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.edges: list[dict[str, int]] = [{}]
        self.depths = [0]
        self.matches = [0]
        self.fallbacks = [0]
        for stop in stops:
            self._insert(stop)
        self._link()

    def next(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (found := self.edges[state].get(character)) is None:
            if state == 0:
                return 0
            state = self.fallbacks[state]
        return found

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self.edges[state]:
                self.edges[state][character] = len(self.edges)
                self.edges.append({})
                self.depths.append(self.depths[state] + 1)
                self.matches.append(0)
                self.fallbacks.append(0)
            state = self.edges[state][character]
        self.matches[state] = len(stop)

    def _link(self) -> None:
        queue = deque(self.edges[0].values())  # these fall back to the start
        while queue:
            state = queue.popleft()
            for character, child in self.edges[state].items():
                self.fallbacks[child] = self.next(self.fallbacks[state], character)
                self.matches[child] = self.matches[child] or self.matches[self.fallbacks[child]]
                queue.append(child)


class StopMatcher:
    """Passes text on up to the first stop string, holding back what may still become one.

    First is the one that ends first; of those that end together, the longest. This does not depend on where the
    pieces end.
    """

    def __init__(self, automaton: StopAutomaton) -> None:
        self._automaton = automaton
        self._state = 0
        self._held = ""
        self.has_matched = False

    def feed(self, text: str) -> str:
        """Text that is safe to show after this piece. After a match: what stood before it, and then nothing."""
        if self.has_matched:
            return ""
        automaton, state = self._automaton, self._state
        known = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            state = automaton.next(state, character)
            if automaton.matches[state]:
                self.has_matched, self._held = True, ""
                return known[: position - automaton.matches[state]]
        self._state = state
        safe = len(known) - automaton.depths[state]
        self._held = known[safe:]
        return known[:safe]

    def flush(self) -> str:
        """What was held back, once the text is over."""
        held, self._held = self._held, ""
        return held
