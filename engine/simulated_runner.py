"""A runner without a model: the next token is a pure function of all tokens before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.runner import Foresight, nothing_foreseen
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepResult, StepShape, StepTimes
from scheduler.request import DraftMethod, SamplingParams, TokenLogprob

_BEGINNING = 0x9E3779B97F4A7C15  # the digest of no tokens at all
_MASK = 2**64 - 1


def _mix(digest: int, value: int) -> int:
    """The digest of what `digest` stands for, followed by `value`. The constants are splitmix64's."""
    digest = (digest ^ (value + 1) * 0xBF58476D1CE4E5B9) & _MASK
    digest = ((digest ^ digest >> 30) * 0x94D049BB133111EB) & _MASK
    return digest ^ digest >> 31


class StaleKV(AssertionError):
    """A row was given a block table that does not hold the sequence's past: the scheduler has a bug."""


class SimulatedKV:
    """What a KV cache would hold, as digests: each slot stands for its token and everything before it.

    A write invalidates the rest of its block, as nothing behind it can still belong to the same sequence.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._digests: dict[int, list[int]] = {}  # by block: the digest after each of its written slots
        self._before: dict[int, int] = {}  # by block: the digest before its first slot

    def past(self, block_table: Sequence[int], length: int) -> int:
        """The digest of positions [0, length), read through the whole table. Raises StaleKV."""
        digest, size = _BEGINNING, self._block_size
        for index in range(-(-length // size)):
            block, needed = block_table[index], min(size, length - index * size)
            written = self._digests.get(block, [])
            if len(written) < needed or self._before[block] != digest:
                raise StaleKV(f"block {block} does not hold positions [{index * size}, {index * size + needed})")
            digest = written[needed - 1]
        return digest

    def digests(self, block_table: Sequence[int], start: int, end: int) -> list[int]:
        """The digests after positions [start, end), which must have been written."""
        size = self._block_size
        return [self._digests[block_table[at // size]][at % size] for at in range(start, end)]

    def write(self, block_table: Sequence[int], start: int, digests: list[int], before: int) -> None:
        """Fill the slots of positions [start, start + len(digests)); `before` is the digest of [0, start)."""
        size = self._block_size
        for position, digest in enumerate(digests, start=start):
            block, offset = block_table[position // size], position % size
            if offset == 0:
                self._before[block] = before
            self._digests.setdefault(block, [])[offset:] = [digest]
            before = digest


class SimulatedDraftKV:
    """What a draft model's cache would hold: slot i stands for the tokens [0, i + 1], one more than the model's."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._digests: dict[int, int] = {}  # by slot

    def check(self, block_table: Sequence[int], expected: Sequence[int]) -> None:
        """Assert that positions [0, len(expected)) hold these digests. Raises StaleKV."""
        for position, digest in enumerate(expected):
            if self._digests.get(self._slot(block_table, position)) != digest:
                raise StaleKV(f"the draft model's row at position {position} was written for other tokens")

    def write(self, block_table: Sequence[int], start: int, digests: Sequence[int]) -> None:
        """Fill the slots of positions [start, start + len(digests))."""
        for position, digest in enumerate(digests, start=start):
            self._digests[self._slot(block_table, position)] = digest

    def _slot(self, block_table: Sequence[int], position: int) -> int:
        return block_table[position // self._block_size] * self._block_size + position % self._block_size


class SimulatedModel:
    """The pure function: from a digest of the tokens so far to the next token and its log-probability."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def next_token(self, digest: int, rows: SequencePlan, ahead: int = 0) -> int:
        """The token after the tokens in `digest`: a greedy one depends on these alone, a drawn one on its seed too.

        `ahead` is how many output tokens lie between the first logit row and this one.
        """
        sampling = rows.sampling
        if sampling.temperature > 0.0:
            for value in (sampling.seed, rows.sequence_index, rows.output_index + ahead):
                digest = _mix(digest, value)
        token_id = digest % self._vocab_size
        if rows.output_index + ahead < sampling.min_tokens:
            while token_id in rows.stop_token_ids:
                token_id = (token_id + 1) % self._vocab_size
        return token_id

    def score(self, digest: int, token_id: int, num_top: int) -> TokenLogprob:
        """The log-probability of a token after the tokens in `digest`, and `num_top` others."""
        top = tuple(((digest + i) % self._vocab_size, -0.5 * (i + 1)) for i in range(num_top))
        return TokenLogprob(token_id=token_id, logprob=-(_mix(digest, token_id) % 4096) / 256, top=top)


class SimulatedRunner:
    """Runs plans in microseconds and finds the scheduler's mistakes.

    A wrong token, position or block table changes what follows or raises StaleKV. `on_step` is called with the rows
    of each step (to spend time, say), `times` says what it shall claim to have taken; a sequence that runs a row of
    `error_token_id` gets an error for its result.
    Drafts are right with the chance `draft_skill`, as a hash of the tokens before them decides; a look-up (NGRAM)
    finds fewer than it was asked for, or none, as the same hash decides.
    """

    def __init__(
        self,
        *,
        block_size: int,
        vocab_size: int = 256,
        error_token_id: int | None = None,
        draft_skill: float = 0.7,
        on_step: Callable[[StepPlan], None] | None = None,
        times: Callable[[StepPlan], StepTimes] | None = None,
    ) -> None:
        self._block_size = block_size
        self._kv = SimulatedKV(block_size)
        self._model = SimulatedModel(vocab_size)
        self._draft_kv = SimulatedDraftKV(block_size)
        self._vocab_size = vocab_size
        self._draft_skill = draft_skill
        self._error_token_id = error_token_id
        self._on_step = on_step
        self._times = times

    def shape(self, plan: StepPlan) -> StepShape | None:
        """See `engine.runner.Runner`."""
        return None

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        """See `engine.runner.Runner`."""
        return None

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        """Compute the rows of a plan. Raises StaleKV."""
        if self._on_step is not None:
            self._on_step(plan)
        return StepResult(
            step_id=plan.step_id,
            sequences=tuple(self._run_sequence(rows) for rows in plan.sequences),
            times=StepTimes() if self._times is None else self._times(plan),
        )

    def _run_sequence(self, rows: SequencePlan) -> SequenceResult:
        before = digest = self._kv.past(rows.block_table, rows.start)
        room = len(rows.block_table) * self._block_size
        assert rows.start + len(rows.token_ids) + rows.num_proposals <= room, (
            f"no room for all rows in {room} positions"
        )
        digests = [digest := _mix(digest, token_id) for token_id in rows.token_ids]
        self._kv.write(rows.block_table, rows.start, digests, before)
        if self._error_token_id is not None and self._error_token_id in rows.token_ids:
            return SequenceResult(error=f"token {self._error_token_id} was to fail")
        self._check_history(rows, digests)
        scores = self._score_prompt(rows, digests)
        if not rows.num_logit_rows:
            if rows.draft_method.has_kv:
                self._draft(rows, digests, ())
            return SequenceResult(prompt_logprobs=scores)
        kept = self._verify(rows, digests)
        first, num_top = len(digests) - rows.num_logit_rows, rows.sampling.num_logprobs
        logprobs = (
            ()
            if num_top is None
            else tuple(
                self._model.score(digests[first + ahead], token_id, num_top) for ahead, token_id in enumerate(kept)
            )
        )
        drafts = self._draft(rows, digests, kept)
        return SequenceResult(token_ids=kept, logprobs=logprobs, prompt_logprobs=scores, draft_ids=drafts)

    def _verify(self, rows: SequencePlan, digests: list[int]) -> tuple[int, ...]:
        """The tokens after the logit rows, up to the first that is not the next row's draft."""
        kept: list[int] = []
        first = len(digests) - rows.num_logit_rows
        for ahead in range(rows.num_logit_rows):
            kept.append(self._model.next_token(digests[first + ahead], rows, ahead))
            if (*rows.draft_ids, -1)[ahead] != kept[-1]:
                break
        return tuple(kept)

    def _draft(self, rows: SequencePlan, digests: list[int], kept: tuple[int, ...]) -> tuple[int, ...]:
        """Follow the rows that stay, then propose."""
        num_staying = len(digests) - rows.num_logit_rows + len(kept)
        after = rows.next_token_id if not kept else kept[-1]
        assert after is not None, "a chunk inside a prompt does not know the token behind it"
        digest = _mix(digests[num_staying - 1], after)
        if rows.draft_method.has_kv:
            self._follow(rows, digests[:num_staying], digest)
        num_found = rows.num_proposals
        if rows.draft_method is DraftMethod.NGRAM:
            num_found = _mix(digest, 19) % (rows.num_proposals + 1)
        proposals: list[int] = []
        for ahead in range(len(kept), len(kept) + num_found):
            right = self._model.next_token(digest, rows, ahead)
            is_right = _mix(digest, 17) % 1000 < 1000 * self._draft_skill
            proposals.append(right if is_right else (right + 1) % self._vocab_size)
            digest = _mix(digest, proposals[-1])
        if rows.draft_method.has_kv:
            end = rows.start + num_staying
            # Rows that no state of the model stands behind: whoever reads them later goes wrong.
            self._draft_kv.write(rows.block_table, end, [-1] * max(rows.num_proposals - 1, 0))
        return tuple(proposals)

    def _check_history(self, rows: SequencePlan, digests: list[int]) -> None:
        """A history holds all that is known before the drafts. Raises StaleKV."""
        if rows.num_logit_rows and (rows.history or rows.draft_method is DraftMethod.NGRAM):
            digest = _BEGINNING
            for token_id in rows.history:
                digest = _mix(digest, token_id)
            if digest != digests[-rows.num_logit_rows]:
                raise StaleKV(f"the history of {len(rows.history)} tokens is not that of the rows")

    def _follow(self, rows: SequencePlan, digests: list[int], after: int) -> None:
        """Check the draft model's rows before these, then write theirs."""
        past = self._kv.digests(rows.block_table, min(1, rows.start), rows.start)
        self._draft_kv.check(rows.block_table, [*past, digests[0]] if rows.start else [])
        self._draft_kv.write(rows.block_table, rows.start, [*digests[1:], after])

    def _score_prompt(self, rows: SequencePlan, digests: list[int]) -> tuple[TokenLogprob, ...]:
        targets, num_top = rows.prompt_logprob_targets, rows.sampling.num_prompt_logprobs or 0
        return tuple(self._model.score(*pair, num_top) for pair in zip(digests, targets, strict=False))


def simulated_output(
    prompt: Sequence[int],
    sampling: SamplingParams,
    *,
    vocab_size: int = 256,
    stop_token_ids: tuple[int, ...] = (),
    sequence_index: int = 0,
    max_context: int = 2**31,
) -> tuple[int, ...]:
    """What a sequence must yield, computed alone and without a scheduler: the oracle of its tests."""
    model, digest = SimulatedModel(vocab_size), _BEGINNING
    output: list[int] = []
    for token_id in prompt:
        digest = _mix(digest, token_id)
    while len(output) < sampling.max_tokens and len(prompt) + len(output) < max_context:
        rows = SequencePlan(
            sequence_id=0,
            token_ids=(),
            start=0,
            block_table=(),
            num_logit_rows=1,
            sampling=sampling,
            sequence_index=sequence_index,
            output_index=len(output),
            stop_token_ids=stop_token_ids,
        )
        output.append(model.next_token(digest, rows))
        if output[-1] in stop_token_ids and len(output) > sampling.min_tokens:
            break
        digest = _mix(digest, output[-1])
    return tuple(output)
