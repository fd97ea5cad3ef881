"""The prompts that committed tokens bring along, and what they leave to decode.

Who answers faster is asked more, so in the long run every token comes with its share of prompt rows, and each sequence
spends the steps of its prompt without decoding. Those steps are as many with drafts as without, the others fewer: of as
many live sequences fewer decode at a time where drafts are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

_DECAY = 0.999  # of the counts, by each step
_FIRST_TOKENS = 512.0  # known from the start, without prompts: a full house begins with nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMix:
    """Steps of so many live sequences: some have prompt rows, the others are decodes alone."""

    num_decodes: float  # on average over all steps
    often: float  # share of steps with prompt rows
    num_rows: float  # of prompts in such a step
    num_beside: float  # decodes in such a step


class PromptLoad:
    """Learns from every step how many prompt rows come with a token, and how many sequences' they are."""

    def __init__(self) -> None:
        self._num_tokens = _FIRST_TOKENS  # committed by decodes
        self._num_rows = 0.0
        self._num_starting = 0.0  # sequences, once for each step of theirs that has prompt rows

    def observe(self, num_tokens: int, num_rows: int, num_starting: int) -> None:
        """Take in a step."""
        self._num_tokens = self._num_tokens * _DECAY + num_tokens
        self._num_rows = self._num_rows * _DECAY + num_rows
        self._num_starting = self._num_starting * _DECAY + num_starting

    def mix(self, num_live: float, tokens_each: float) -> PromptMix:
        """What to expect where every decode commits so many tokens a step."""
        starting_each = self._num_starting / self._num_tokens * tokens_each
        num_decodes = num_live / (1.0 + starting_each)
        num_starting = num_live - num_decodes
        if num_starting <= 0.0:
            return PromptMix(num_decodes=num_live, often=0.0, num_rows=0.0, num_beside=num_live)
        # Sequences start independently of each other.
        often = 1.0 - (1.0 - num_starting / num_live) ** num_live
        return PromptMix(
            num_decodes=num_decodes,
            often=often,
            num_rows=self._num_rows / self._num_tokens * tokens_each * num_decodes / often,
            num_beside=max(num_live - num_starting / often, 0.0),
        )
