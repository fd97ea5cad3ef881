"""What requests ask: values that workloads yield, and the two kinds of workload."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sigmoe.loadtest.lengths import Lengths

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What one arrival asks: a prompt to be continued, or the rounds of a conversation.

    Each round's messages are put behind what was said so far, and answered. `output_tokens` forces the answer's length.
    """

    prompt: str | tuple[int, ...] | None = None
    rounds: tuple[tuple[Message, ...], ...] = ()
    output_tokens: int | None = None

    @property
    def num_requests(self) -> int:
        """How many calls it makes."""
        return max(1, len(self.rounds))

    def shaped(self, *, is_chat: bool, is_single: bool) -> Item:
        """A text as a user's message, or only the first round, where that is wanted."""
        if is_chat and isinstance(self.prompt, str):
            return replace(self, prompt=None, rounds=(({"role": "user", "content": self.prompt},),))
        return replace(self, rounds=self.rounds[:1]) if is_single else self


class Workload(Protocol):
    """A source of items without end."""

    def items(self, seed: str) -> Iterator[Item]:
        """The same items for the same seed."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a reader of the result must know to repeat it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Given items, shuffled anew each time that all have been asked."""

    name: str
    given: Sequence[Item]
    origin: str = ""
    output_tokens: Lengths | None = None
    is_shuffled: bool = True

    def items(self, seed: str) -> Iterator[Item]:
        """All of them, again and again."""
        rng = random.Random(f"{seed}/{self.name}")
        order = list(self.given)
        while True:
            if self.is_shuffled:
                rng.shuffle(order)
            for item in order:
                yield item if self.output_tokens is None else replace(item, output_tokens=self.output_tokens.draw(rng))

    def facts(self) -> dict[str, Any]:
        """Name, origin and size."""
        lengths = "as the model ends" if self.output_tokens is None else self.output_tokens.text
        return {"name": self.name, "origin": self.origin, "items": len(self.given), "output_tokens": lengths}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTokens:
    """Prompts of random token ids, so that no prefix is met twice; or, with prefixes, exactly theirs."""

    vocab_size: int
    input_tokens: Lengths
    output_tokens: Lengths
    num_prefixes: int = 0
    prefix_tokens: int = 0
    avoided: frozenset[int] = frozenset()  # ids that end a text

    def items(self, seed: str) -> Iterator[Item]:
        """New prompts for ever; `input_tokens` come behind the prefix."""
        # Prefixes are the same in every level of a run, as shared prompts are in real traffic.
        fixed = random.Random(f"prefixes/{seed.partition('/')[0]}")
        prefixes = [self._ids(fixed, self.prefix_tokens) for _ in range(self.num_prefixes)] or [()]
        rng = random.Random(f"{seed}/random")
        while True:
            prompt = rng.choice(prefixes) + self._ids(rng, self.input_tokens.draw(rng))
            yield Item(prompt=prompt, output_tokens=self.output_tokens.draw(rng))

    def facts(self) -> dict[str, Any]:
        """Lengths and prefixes."""
        shown = {"input_tokens": self.input_tokens.text, "output_tokens": self.output_tokens.text}
        if not self.num_prefixes:
            return {"name": "random", **shown}
        return {
            "name": "shared-prefix",
            **shown,
            "prefixes": self.num_prefixes,
            "prefix_tokens": self.prefix_tokens,
        }

    def _ids(self, rng: random.Random, length: int) -> tuple[int, ...]:
        drawn: list[int] = []
        while len(drawn) < length:
            drawn += [i for i in rng.choices(range(self.vocab_size), k=length - len(drawn)) if i not in self.avoided]
        return tuple(drawn)
