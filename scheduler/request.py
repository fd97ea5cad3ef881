"""What a client asked for, and what it gets back: the values that cross the rank's border."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import zip_longest
from operator import add
from typing import NamedTuple


class RequestRefused(ValueError):
    """A request that can never run here. `field` is the path of the field at fault, as the client knows it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class QueueFull(RuntimeError):
    """No room for another waiting sequence now: the same request may be taken later, or by another rank."""


class FinishReason(enum.Enum):
    """Why a sequence ended. Every sequence ends exactly once."""

    STOP = "stop"  # an end-of-text or stop token id, or a stop string (found by the gateway)
    LENGTH = "length"  # max_tokens or the context limit
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


class DraftMethod(enum.Enum):
    """What proposes tokens ahead of the model, which then verifies several at once."""

    NONE = "none"
    EAGLE3 = "eagle3"  # a small dense layer fed with the model's inner states
    MTP = "mtp"  # the checkpoint's own multi-token-prediction layer
    NGRAM = "ngram"  # what followed the last tokens earlier in prompt and output

    @cached_property
    def has_kv(self) -> bool:
        """Whether it keeps keys and values of its own for every row of a sequence."""
        return self in (DraftMethod.EAGLE3, DraftMethod.MTP)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Defaults sample from the unmodified distribution.

    Order of the stages: repetition, presence and frequency penalties and logit bias; the min_tokens mask;
    temperature; top-k; top-p; min-p; softmax in fp32. temperature 0 is greedy (ties go to the lower id).
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0  # 0 keeps the whole vocabulary
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output only
    frequency_penalty: float = 0.0  # over output only
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0  # always set: the gateway draws one where the client gave none
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # None: no log-probabilities; 0: the chosen token's alone; n: and the top n
    num_prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One client request as a rank sees it. Times are seconds on the rank's own monotonic clock.

    `resumed` holds output tokens already streamed by a rank that died: they count as output, not as prompt.
    A resumed request carries one sequence, whose index (part of its seed) is `first_sequence_index`.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    num_sequences: int = 1  # the client's `n`
    priority: int = 0  # larger is served sooner; waiting raises it (ageing). Below 0: background, which gives way
    deadline_s: float | None = None
    resumed: tuple[int, ...] = ()
    first_sequence_index: int = 0  # the sequences are numbered from here
    draft_method: DraftMethod | None = None  # None: what the rank drafts with by default
    max_drafts: int | None = None  # tokens drafted at a time; None: what the rank finds best


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """The log-probability of one token and of the most likely ones at its place (natural log, fp32).

    They are those of the unmodified distribution: log_softmax of the raw logits.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), most likely first


class Round(NamedTuple):
    """One verification; without drafts, a token that came alone.

    Fewer tokens are committed than accepted where the sequence ends among them.
    """

    num_drafted: int
    num_accepted: int
    num_committed: int


ALONE = Round(num_drafted=0, num_accepted=0, num_committed=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """What drafting brought; tau = committed / rounds. Entry i of a tuple counts drafts at place i + 1 of a round."""

    num_rounds: int = 0  # verifications of at least one draft
    num_committed: int = 0  # tokens that came out of them
    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    def __add__(self, other: DraftCounts) -> DraftCounts:
        """Of both together."""
        return DraftCounts(
            num_rounds=self.num_rounds + other.num_rounds,
            num_committed=self.num_committed + other.num_committed,
            drafted=_sums(self.drafted, other.drafted),
            accepted=_sums(self.accepted, other.accepted),
        )

    @property
    def rounds_by_length(self) -> tuple[int, ...]:
        """Entry i: rounds of i + 1 drafts."""
        return tuple(map(int.__sub__, self.drafted, (*self.drafted[1:], 0)))


def _sums(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(one, other, fillvalue=0)))


class DraftingState(enum.Enum):
    """What a draft method does on a rank. It is in exactly one state."""

    OFF = "off"  # no request has asked for it
    FIXED = "fixed"  # it always drafts as many as are allowed
    LEARNING = "learning"  # it drafts to find out whether that pays
    DRAFTING = "drafting"  # as many as pay
    RESTING = "resting"  # no drafts, since none pay at present
    BROKEN = "broken"  # switched off for good: next to nothing was accepted, so that the draft model must be wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftingStatus:
    """One draft method on one rank."""

    method: DraftMethod
    state: DraftingState = DraftingState.OFF
    length: int = 0  # tokens drafted per sequence at present
    reason: str = ""  # why that many, for an operator to read
    counts: DraftCounts = DraftCounts()  # since the start
    cost_error: float = 0.0  # of the times expected when drafts are chosen: relative, of late


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one sequence cost on the rank that it ended on. Times in seconds.

    The times of phases (see StepTimes) are of whole steps, which all sequences of a batch share: of those that ran
    while the sequence had its place.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    draft_s: float = 0.0
    extend_s: float = 0.0
    draft_method: DraftMethod = DraftMethod.NONE  # what was to draft for it
    draft_reason: str = ""  # of the length chosen last, or why it had no drafts at all


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDelta:
    """What one step added to one sequence. The last one of a sequence carries its reason and its usage.

    `rounds` is empty where every token came alone; else they stand for all tokens, in order.
    """

    request_id: str
    sequence_index: int  # first_sequence_index .. first_sequence_index + num_sequences - 1
    token_ids: tuple[int, ...] = ()
    rounds: tuple[Round, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id when asked for
    # Position i scores prompt token i + 1; sent once, with the first delta of sequence 0.
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """A snapshot of one rank's queues and blocks."""

    num_waiting: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    block_size: int
    num_preemptions: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    drafting: tuple[DraftingStatus, ...] = ()  # by method: what requests get by default first, if anything
    forward_s: float = 0.0  # seconds since the start in the phases of steps; see StepTimes
    sample_s: float = 0.0
    draft_s: float = 0.0
    extend_s: float = 0.0

    @property
    def drafts(self) -> DraftCounts:
        """What all methods brought together."""
        return reduce(add, [one.counts for one in self.drafting], DraftCounts())
