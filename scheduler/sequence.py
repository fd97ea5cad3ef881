"""The mutable state of one sequence on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.draft_length import DraftLength
from scheduler.draft_odds import DraftOdds
from scheduler.plan import SequencePlan, StepTimes
from scheduler.request import DraftMethod, FinishReason, Request, SamplingParams, TokenLogprob, Usage

_MISSED = "its beginning was in the prefix cache without the draft model's part"


@dataclass(slots=True, kw_only=True, eq=False)
class Drafting:
    """What is kept about drafting for one sequence."""

    method: DraftMethod
    control: DraftLength
    odds: DraftOdds
    max_drafts: int
    is_foreseeable: bool  # whether its rounds tell a right draft model from a wrong one
    has_missed: bool = False  # it started behind rows that the draft model has not seen
    is_sample: bool = False  # whether its present drafts were asked for at no price, and tell what all may expect
    asks_sample: bool = False  # the same of those that the planned step proposes


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Three lengths say where a sequence stands; there is no phase.

        [0, num_computed)             in the KV cache
        [num_computed, len(tokens))   known, to be computed: one row for a decode, more for a prompt
        [0, num_prompt)               the prompt; what follows is output

    Whether it runs is whether it holds blocks. `tokens` and `block_table` only grow, but for a preemption, which
    empties the table.
    """

    sequence_id: int
    index: int  # among the sequences of its request, part of its seed
    request: Request
    turn: float  # who is served first: the lower (see queue_policy)
    arrival_s: float
    stop_token_ids: tuple[int, ...]
    tokens: list[int]
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)  # of the leading full blocks, as far as needed yet
    prompt_scores: list[TokenLogprob] | None = None  # None: not wanted, or sent
    drafts: tuple[int, ...] = ()  # proposed for its next step
    drafting: Drafting | None = None  # None: nothing is drafted for it
    is_followed: bool = False  # the draft model has seen every row computed
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # of the prompt, at the first start
    num_preemptions: int = 0
    ran: StepTimes = field(default_factory=StepTimes)  # what steps took while it held a place; see LiveRequests
    started_s: float | None = None
    first_token_s: float | None = None

    @property
    def sampling(self) -> SamplingParams:
        """How the tokens are chosen."""
        return self.request.sampling

    @property
    def is_background(self) -> bool:
        """Whether it gives way to every sequence of the foreground that comes before it in turn."""
        return self.request.priority < 0

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def num_output(self) -> int:
        """Tokens of the output, resumed ones included."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_outstanding(self) -> int:
        """Rows to compute before the next token can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def is_running(self) -> bool:
        """Whether it holds blocks."""
        return bool(self.block_table)

    @property
    def draft_method(self) -> DraftMethod:
        """What may draft for it now."""
        drafting = self.drafting
        if drafting is None or (drafting.method.has_kv and not self.is_followed):
            return DraftMethod.NONE
        return drafting.method

    def rows(self, num_rows: int) -> SequencePlan:
        """The next `num_rows` rows, to be computed in one step."""
        return self.drafted_rows(num_rows, DraftMethod.NONE, 0, 0)

    def drafted_rows(self, num_rows: int, method: DraftMethod, num_drafts: int, num_proposals: int) -> SequencePlan:
        """The next rows with drafts behind them, and what the drafter shall do after them."""
        start, end = self.num_computed, self.num_computed + num_rows
        sampling, tokens = self.request.sampling, self.tokens
        num_prompt = len(self.request.prompt)
        is_sampled = end == len(tokens) and sampling.max_tokens > 0
        token_ids = (tokens[start],) if num_rows == 1 else tuple(tokens[start:end])
        after = None
        if method is not DraftMethod.NONE and not is_sampled:
            # Behind a prompt that is only scored comes nothing: nobody reads the draft model's last row there.
            after = tokens[end] if end < len(tokens) else tokens[-1]
        return SequencePlan(
            sequence_id=self.sequence_id,
            token_ids=token_ids + self.drafts[:num_drafts] if num_drafts else token_ids,
            start=start,
            block_table=self.block_table,
            num_logit_rows=1 + num_drafts if is_sampled else 0,
            sampling=sampling,
            sequence_index=self.index,
            output_index=len(tokens) - num_prompt,
            prompt_logprob_targets=() if self.prompt_scores is None else self.request.prompt[start + 1 : end + 1],
            num_prompt_tokens=num_prompt,
            history=tokens if method is DraftMethod.NGRAM or _reads_history(sampling) else (),
            stop_token_ids=self.stop_token_ids,
            next_token_id=after,
            draft_method=method,
            num_proposals=num_proposals,
        )

    def accept(self, token_ids: tuple[int, ...], max_context: int) -> int:
        """Append tokens up to the first that ends the sequence, and return how many were kept."""
        for kept, token_id in enumerate(token_ids, start=1):
            self.tokens.append(token_id)
            self.finish_reason = self.reason_to_end(max_context)
            if self.finish_reason is not None:
                return kept
        return len(token_ids)

    def reason_to_end(self, max_context: int) -> FinishReason | None:
        """Why the sequence ends with its present last token, if it does. The token itself belongs to the output."""
        sampling, num_output = self.request.sampling, len(self.tokens) - len(self.request.prompt)
        if num_output > sampling.min_tokens and self.tokens[-1] in self.stop_token_ids:
            return FinishReason.STOP
        if num_output >= sampling.max_tokens or len(self.tokens) >= max_context:
            return FinishReason.LENGTH
        return None

    def take_prompt_scores(self) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of the prompt, once."""
        scores, self.prompt_scores = self.prompt_scores, None
        return tuple(scores or ())

    def usage(self, now_s: float) -> Usage:
        """What the sequence cost until now."""
        started_s = now_s if self.started_s is None else self.started_s
        first_token_s = now_s if self.first_token_s is None else self.first_token_s
        return Usage(
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=self.num_output,
            num_preemptions=self.num_preemptions,
            queue_s=started_s - self.arrival_s,
            prefill_s=first_token_s - started_s,
            decode_s=now_s - first_token_s,
            forward_s=self.ran.forward_s,
            sample_s=self.ran.sample_s,
            draft_s=self.ran.draft_s,
            extend_s=self.ran.extend_s,
            draft_method=DraftMethod.NONE if self.drafting is None else self.drafting.method,
            draft_reason=self._draft_reason,
        )

    @property
    def _draft_reason(self) -> str:
        if self.drafting is None:
            return ""
        return _MISSED if self.drafting.has_missed and not self.is_followed else self.drafting.control.reason


def _reads_history(sampling: SamplingParams) -> bool:
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def stop_ids(sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The token ids that end a sequence: its own, and the model's ends of text unless it ignores these."""
    return sampling.stop_token_ids if sampling.ignore_eos else (*eos_token_ids, *sampling.stop_token_ids)
