"""One call's stream: what its sequences collected, taken by the client at its own pace.

The pump pushes and never waits; whoever writes to the client takes whatever has gathered meanwhile. So a slow
reader costs its own unread tokens, up to a bound, and a busy gateway writes fewer, larger responses.
"""

from __future__ import annotations

import asyncio

from cluster.sequence_stream import Chunk, SequenceStream, TextRules
from scheduler.request import TokenDelta
from sigmoe.errors import Overloaded, SigmoeError

# Tokens and candidates that may wait for a reader; with log-probabilities some 100 bytes each.
MAX_PENDING = 2**20


class RequestStream:
    """The sequences of one request. `push` and `fail` are the pump's, `take` the call's; all on one event loop."""

    def __init__(
        self,
        num_sequences: int,
        num_prompt_tokens: int,
        rules: TextRules,
        *,
        max_pending: int = MAX_PENDING,
        is_whole: bool = False,
    ) -> None:
        """`is_whole`: nothing is given out before all sequences have ended."""
        self.sequences = tuple(SequenceStream(index, num_prompt_tokens, rules) for index in range(num_sequences))
        self.has_stops = rules.stops is not None
        self._max_pending = max_pending
        self._is_whole = is_whole
        self._num_unfinished = num_sequences
        self._num_pending = 0
        self._changed: dict[int, SequenceStream] = {}  # those with something to take, in order of arrival
        self._error: SigmoeError | None = None
        self._news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is wanted from the ranks."""
        return self._num_unfinished == 0 or self._error is not None

    def push(self, delta: TokenDelta) -> SequenceStream:
        """Take in what a step added to one sequence; returns that sequence."""
        sequence = self.sequences[delta.sequence_index]
        if self._error is not None or sequence.is_finished:
            return sequence
        before = sequence.num_pending
        sequence.push(delta)
        added = sequence.num_pending - before
        if added == 0:
            return sequence
        self._num_unfinished -= sequence.is_finished
        self._num_pending += added
        self._changed[sequence.index] = sequence
        if not self._is_whole or self.is_over:
            self._news.set()
        if self._num_pending > self._max_pending:
            self.fail(Overloaded(f"the client reads too slowly: {self._num_pending} tokens wait for it"))
        return sequence

    def fail(self, error: SigmoeError) -> None:
        """End the stream with an error once what has gathered is taken; an ended stream stays as it is."""
        if not self.is_over:
            self._error = error
            self._news.set()

    async def take(self) -> list[Chunk]:
        """Wait for news and take all of it, a chunk for each sequence; nothing once all sequences have ended.

        Raises the error that the stream failed with.
        """
        while not self._changed or (self._is_whole and not self.is_over):
            if self._error is not None:
                raise self._error
            if self._num_unfinished == 0:
                return []
            self._news.clear()
            await self._news.wait()
        chunks = [sequence.take() for sequence in self._changed.values()]
        self._changed.clear()
        self._num_pending = 0
        return chunks
