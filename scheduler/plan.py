"""One step as the scheduler sees it: what will run, and what came out."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from scheduler.request import DraftMethod, SamplingParams, TokenLogprob

UNKNOWN_TOKEN = -1  # of a row that was foreseen: what the step before chooses or proposes for the sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencePlan:
    """The rows of one sequence in one step.

    Row r holds token `token_ids[r]` at position `start + r`; [0, start) is in the KV cache already.
    `num_logit_rows` trailing rows need logits: 0 for a chunk that ends inside the prompt, 1 where a token is
    sampled, k + 1 for a verify, whose last k rows hold drafts. With `prompt_logprobs` every row's logits are wanted
    as well.
    """

    sequence_id: int  # unique on this rank for its life, never reused
    token_ids: tuple[int, ...]
    start: int
    block_table: Seq[int]  # append-only; valid until the step is committed
    num_logit_rows: int
    sampling: SamplingParams
    sequence_index: int  # 0 .. n-1, part of the sampling seed
    output_index: int  # index in the output of the token that the first logit row yields
    prompt_logprob_targets: tuple[int, ...] = ()  # the prompt token after row r, for the rows to be scored
    num_prompt_tokens: int = 0
    history: Seq[int] = ()  # prompt + output so far, given where a penalty needs it; valid until commit
    stop_token_ids: tuple[int, ...] = ()  # what min_tokens masks: end-of-text ids (unless ignored) + stop ids
    next_token_id: int | None = None  # the token after the last row, where it is known: inside a prompt
    draft_method: DraftMethod = DraftMethod.NONE  # what drafts for it; a model that does follows every one of its rows
    num_proposals: int = 0  # drafts wanted for its next step; the block table has room for their rows

    @property
    def draft_ids(self) -> tuple[int, ...]:
        """The drafts among the rows, which this step verifies."""
        return self.token_ids[len(self.token_ids) - self.num_logit_rows + 1 :] if self.num_logit_rows > 1 else ()


def num_draft_passes(sequences: Seq[SequencePlan]) -> int:
    """Forward passes of the draft model that a step of these sequences needs."""
    followed = [planned.num_proposals for planned in sequences if planned.draft_method.has_kv]
    return max(1, *followed) if followed else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """How much room a step of decodes and verifies needs, where it may be padded to a fixed size."""

    num_sequences: int
    most_rows: int  # of one sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one rank runs in one step. Without sequences the rank only takes part in the collectives.

    The draft model runs `num_draft_passes` times after the verification: once over the rows that stay, then once for
    each further draft of the longest proposal. The group agrees on the number, since a pass may have collectives.
    """

    step_id: int
    sequences: tuple[SequencePlan, ...]
    num_rows: int
    num_draft_passes: int = 0
    shape: StepShape | None = None  # what the group agreed on, at least as large as needed here; None: rows as they are
    is_launched: bool = False  # the group agreed on it and launched it before it was planned


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceResult:
    """What a step produced for one sequence.

    No token for an unfinished prompt, one for a decode, for a verify the drafts accepted and one more.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    draft_ids: tuple[int, ...] = ()  # proposed for the next step, at most `num_proposals`
    error: str = ""  # non-empty: this sequence alone ends with FinishReason.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of wall-clock time that the phases of a step took."""

    forward_s: float = 0.0  # the model over all rows
    sample_s: float = 0.0  # sampling, verification, log-probabilities
    draft_s: float = 0.0  # the draft model's passes, or the look-up
    extend_s: float = 0.0  # of these, the pass that follows the rows of the step

    def __add__(self, other: StepTimes) -> StepTimes:
        """Of both together."""
        return StepTimes(
            forward_s=self.forward_s + other.forward_s,
            sample_s=self.sample_s + other.sample_s,
            draft_s=self.draft_s + other.draft_s,
            extend_s=self.extend_s + other.extend_s,
        )

    def __sub__(self, other: StepTimes) -> StepTimes:
        """What came to the other since."""
        return StepTimes(
            forward_s=self.forward_s - other.forward_s,
            sample_s=self.sample_s - other.sample_s,
            draft_s=self.draft_s - other.draft_s,
            extend_s=self.extend_s - other.extend_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The results of a step, aligned with `StepPlan.sequences`."""

    step_id: int
    sequences: tuple[SequenceResult, ...]
    times: StepTimes = StepTimes()
    is_whole: bool = True  # it ran in one piece and nothing beside it, so that its times are those of its rows
