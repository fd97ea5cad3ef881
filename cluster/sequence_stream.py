"""One sequence on its way to the client: token deltas in, text out."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cluster.stop_strings import StopAutomaton, StopMatcher
from scheduler.draft_tally import DraftTally
from scheduler.request import DraftCounts, FinishReason, TokenDelta, TokenLogprob, Usage

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What is new of one sequence. The last one carries reason, usage and what drafting brought."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""
    usage: Usage | None = None
    drafts: DraftCounts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How the tokens of a request become text.

    pieces: bytes of each token that shows; hidden_ids: those that end a sequence and never show; stops: the stop
    strings, looked for once more than `min_tokens` tokens are there.
    """

    pieces: Mapping[int, bytes]
    hidden_ids: frozenset[int] = frozenset()
    stops: StopAutomaton | None = None
    min_tokens: int = 0


class SequenceStream:
    """Collects what a rank reports of one sequence until the client takes it. Ends exactly once.

    A stop string closes the text at once; the ending itself waits for the rank's last word, which has the usage.
    Bytes that never became a whole character are dropped at the end. Rounds are counted as their tokens are taken, so
    that what a rank ran behind a stop string counts not, and what a rank brought that was lost does.
    """

    def __init__(self, index: int, num_prompt_tokens: int, rules: TextRules) -> None:
        self.index = index
        self.token_ids: list[int] = []  # all of them: a rank that takes over needs them
        self.is_stopped = False  # a stop string was found
        self.is_finished = False
        self.has_prompt_logprobs = False  # they came, if they were asked for
        self.num_pending = 0  # tokens and candidates that wait for the client, and an ending
        self._num_prompt_tokens = num_prompt_tokens
        self._rules = rules
        self._utf8 = _utf8_decoder("replace")
        self._matcher = None if rules.stops is None else StopMatcher(rules.stops)
        self._tally = DraftTally()
        self._num_taken = 0  # of token_ids
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self._ending: tuple[FinishReason, str, Usage] | None = None

    def push(self, delta: TokenDelta) -> None:
        """Take in what a step added. After the end nothing is taken any more."""
        if self.is_finished:
            return
        if delta.prompt_logprobs and not self.has_prompt_logprobs:
            self.has_prompt_logprobs = True
            self._prompt_logprobs = delta.prompt_logprobs
            self.num_pending += num_candidates(delta.prompt_logprobs)
        if delta.token_ids and not self.is_stopped:
            self._take_tokens(delta)
        if delta.finish_reason is not None:
            self.finish(delta.finish_reason, delta.error, delta.usage)

    def finish(self, reason: FinishReason, error: str = "", usage: Usage | None = None) -> None:
        """End the sequence. A stop string found before is the reason, whatever the rank says."""
        assert not self.is_finished, f"sequence {self.index} ends twice"
        self.is_finished = True
        self.num_pending += 1
        if self.is_stopped:
            reason, error = FinishReason.STOP, ""
        elif self._matcher is not None:
            self._text.append(self._matcher.flush())
        self._ending = (reason, error, self._final_usage(usage))

    def take(self) -> Chunk:
        """Everything that has come since the last take."""
        reason, error, usage = self._ending or (None, "", None)
        chunk = Chunk(
            index=self.index,
            text="".join(self._text),
            token_ids=tuple(self.token_ids[self._num_taken :]),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
            finish_reason=reason,
            error=error,
            usage=usage,
            drafts=None if usage is None else self._tally.counts(),
        )
        self._num_taken = len(self.token_ids)
        self._text.clear()
        self._logprobs.clear()
        self._prompt_logprobs = ()
        self._ending = None
        self.num_pending = 0
        return chunk

    def _take_tokens(self, delta: TokenDelta) -> None:
        """Token by token, because a stop string may end inside a delta of several."""
        rules, matcher = self._rules, self._matcher
        num_tokens = 0
        for token_id in delta.token_ids:
            num_tokens += 1
            self.token_ids.append(token_id)
            piece = b"" if token_id in rules.hidden_ids else rules.pieces.get(token_id, b"")
            text = self._utf8.decode(piece) if piece else ""
            if text and matcher is not None and len(self.token_ids) > rules.min_tokens:
                text = matcher.feed(text)
                self.is_stopped = matcher.has_matched
            if text:
                self._text.append(text)
            if self.is_stopped:
                break
        if delta.rounds:
            self._tally.take(delta.rounds, num_tokens)
        self._logprobs.extend(delta.logprobs[:num_tokens])
        self.num_pending += num_tokens + num_candidates(delta.logprobs)

    def _final_usage(self, usage: Usage | None) -> Usage:
        """The rank's figures, but for the tokens it made after a stop string, or while it was lost."""
        if usage is None:
            return Usage(
                num_prompt_tokens=self._num_prompt_tokens, num_cached_tokens=0, num_output_tokens=len(self.token_ids)
            )
        return replace(usage, num_output_tokens=len(self.token_ids))


def num_candidates(logprobs: Iterable[TokenLogprob]) -> int:
    """Candidates in a list of log-probabilities: what its memory grows with."""
    return sum([1 + len(entry.top) for entry in logprobs])
