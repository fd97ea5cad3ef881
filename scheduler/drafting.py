"""Drafting as the scheduler sees it: for whom, how many tokens, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from scheduler.block_tables import BlockTables
from scheduler.draft_costs import DraftedStep
from scheduler.draft_length import DraftLength
from scheduler.draft_tally import DraftTally
from scheduler.limits import SchedulerConfig
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepResult
from scheduler.request import DraftingStatus, DraftMethod, Request, Round, SamplingParams
from scheduler.sequence import Drafting, Sequence

_LISTEN_EVERY = 16  # steps, while nothing drafts
_LISTEN_SELDOM = 64  # where they are short, so that listening would be a part of them
_FEW = 8  # sequences, whose steps are
_PATIENCE = 16  # sequences that cannot be followed, after which one is at a price


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What a sequence's next step will hold, whatever the present one accepts; blocks are reserved for all of it."""

    num_drafts: int
    num_proposals: int
    is_sample: bool = False  # see DraftLength.is_sampling


class DraftPlanner:
    """Plans drafts and proposals for sequences that may have them. Costs nothing where no sequence may.

    Drafts take what roots and chunks leave: rows of the budget, and blocks that nobody else is about to need.
    What was foreseen of a step (`foresee`, `expect`) is also what is planned, unless the sequence cannot have it by
    then. It was chosen a step earlier, and may reach beyond the end of the output: `settle` counts nothing of that.
    """

    def __init__(self, config: SchedulerConfig, tables: BlockTables) -> None:
        self._config = config
        self._context_limit = config.context_limit
        self._tables = tables
        self._lengths: dict[DraftMethod, DraftLength] = {}  # of the methods in use
        self._tallies: dict[DraftMethod, DraftTally] = {}  # all rounds of each
        by_default = (config.draft_method,) if config.draft_method is not DraftMethod.NONE else ()
        self._status = tuple(DraftingStatus(method=method) for method in by_default)
        self._is_news = False  # since the status was made
        self._expected: Mapping[int, Foreseen] = {}  # of the next step, by sequence id
        self._foreseen: Mapping[int, Foreseen] = {}  # of the one being planned
        self._num_live = 0  # sequences of the last step
        self._num_dropped = 0  # tokens of this one behind the ends of outputs
        self._num_missed = 0  # sequences not followed since the last that was, for blocks found in the prefix cache
        self._is_still = not config.adaptive_drafts  # no length changes
        self.rests = True  # whether nothing drafts at present, so that there is nothing to plan
        self._num_resting = -1  # decodes of the last step that every length rested on
        self._num_rested = 0  # steps like it that they were not told of yet

    @property
    def is_idle(self) -> bool:
        """Whether no sequence ever asked for drafts."""
        return not self._lengths

    def admit(self, request: Request) -> Drafting | None:
        """What to keep for a new sequence of this request; None where nothing is to be drafted."""
        method = self._config.draft_method if request.draft_method is None else request.draft_method
        limit = self._config.max_drafts if request.max_drafts is None else request.max_drafts
        limit = min(limit, self._config.max_drafts)
        if method is DraftMethod.NONE or not limit:
            return None
        if method not in self._lengths:
            self._tell_rested()
            self._lengths[method], self._tallies[method] = self._new_length(method), DraftTally()
            self.rests, self._is_news = False, True
        return Drafting(
            method=method,
            control=self._lengths[method],
            odds=self._lengths[method].new_odds(),
            max_drafts=limit,
            is_foreseeable=_is_foreseeable(request.sampling),
        )

    def insists_on_following(self, sequence: Sequence) -> bool:
        """Whether a sequence shall compute again what the prefix cache has without the draft model's part.

        One in a while does: a beginning that many share would else keep them all from drafting for good.
        """
        drafting = sequence.drafting
        if drafting is None or not drafting.method.has_kv:
            return False
        length = self._length(drafting.method)
        return length.is_trial_due or (not length.is_off and self._num_missed >= _PATIENCE)

    def enter(self, sequence: Sequence) -> None:
        """A sequence starts, at the rows that it found in the prefix cache."""
        drafting = sequence.drafting
        if drafting is None or not drafting.method.has_kv:
            sequence.is_followed = False
            return
        drafting.has_missed = not sequence.is_followed
        if sequence.is_followed:
            sequence.is_followed = self._length(drafting.method).follows_next()
            self._look_whether_all_rest()
            self._num_missed = 0
        else:
            self._num_missed += 1

    def begin_step(self, decodes: Seq[Sequence]) -> None:
        """Settle the lengths of a step that lets these sequences decode."""
        self._foreseen, self._expected = self._expected, {}
        if self._is_still:
            return
        if self.rests and len(decodes) == self._num_resting:
            self._num_rested += 1
            return
        self._tell_rested()
        self._is_news = True
        self._num_resting = len(decodes)
        for method, length in self._lengths.items():
            is_followed = method.has_kv and any(sequence.is_followed for sequence in decodes)
            if not is_followed and length.rests_on(len(decodes)):
                continue
            self._num_resting = -1
            able = [(s, s.drafting.odds) for s in decodes if s.drafting is not None and s.drafting.method is method]
            mine = [(sequence, odds) for sequence, odds in able if sequence.draft_method is method]
            others = len(able) - len(mine)
            length.begin_step(len(decodes), [odds for _, odds in mine], others, num_live=self._num_live)
            if method.has_kv and length.is_off:
                for sequence, _ in mine:
                    sequence.is_followed, sequence.drafts = False, ()
        self._look_whether_all_rest()

    def num_drafts(self, sequence: Sequence, num_rows: int, num_spare: int) -> int:
        """Of the drafts proposed for a decode as many as it may run, at most `num_rows`; `num_spare` blocks stay."""
        if not sequence.drafts or sequence.draft_method is DraftMethod.NONE:
            return 0
        if (foreseen := self._standing(sequence, len(sequence.drafts))) is not None:
            return foreseen.num_drafts
        wanted = min(len(sequence.drafts), num_rows, self._room(sequence))
        if wanted <= 0:
            return 0
        known = len(sequence.tokens)
        return min(wanted, self._tables.reserve(sequence, known + wanted, num_spare) - known)

    def num_proposals(self, sequence: Sequence, num_drafts: int, num_spare: int) -> int:
        """Drafts that a sequence with this step's token will want in the next step, blocks reserved for them."""
        drafting = sequence.drafting
        if drafting is None or sequence.draft_method is DraftMethod.NONE:
            return 0
        if (foreseen := self._standing(sequence, num_drafts)) is not None:
            drafting.asks_sample = foreseen.is_sample
            return foreseen.num_proposals
        drafting.asks_sample = self._lengths[drafting.method].is_sampling
        known = len(sequence.tokens) + num_drafts
        # The draft model runs its own drafts, at positions behind all that this step may commit.
        limit = min(drafting.max_drafts, self._room(sequence) - 1, self._context_limit - known)
        wanted = self._lengths[drafting.method].length_for(drafting.odds, limit) if limit > 0 else 0
        if wanted <= 0:
            return 0
        return max(0, min(wanted, self._tables.reserve(sequence, known + wanted, num_spare) - known))

    def foresee(self, sequence: Sequence, planned: SequencePlan, num_others: int) -> Foreseen | None:
        """The next step of a sequence whose present one is steady; None where that is not certain.

        A draft model proposes as many as it is asked for, and all of them are verified. For drafts no blocks are taken
        that `num_others` sequences might need.
        """
        num_drafts, num_proposals, is_sample = planned.num_proposals, 0, False
        # At most so many tokens are known by then, all drafts of the present step included.
        most_known = len(sequence.tokens) + planned.num_logit_rows
        drafting = sequence.drafting
        if drafting is not None and planned.draft_method.has_kv:
            length = self._lengths[drafting.method]
            limit = min(
                drafting.max_drafts,
                self._room(sequence) - 2,
                self._context_limit - most_known - num_drafts,
            )
            num_proposals = length.length_for(drafting.odds, limit) if limit > 0 else 0
            is_sample = length.is_sampling
        certain = most_known + num_drafts
        if certain > self._context_limit:
            return None
        num_spare = 0 if planned.draft_method is DraftMethod.NONE else num_others
        room = self._tables.reserve(sequence, certain + num_proposals, num_spare) - certain
        if room < 0:
            return None
        return Foreseen(num_drafts=num_drafts, num_proposals=min(num_proposals, room), is_sample=is_sample)

    def expect(self, foreseen: Mapping[int, Foreseen]) -> None:
        """Plan the next step as foreseen, by sequence id."""
        self._expected = foreseen

    def settle(
        self, sequence: Sequence, planned: SequencePlan, outcome: SequenceResult, num_kept: int
    ) -> tuple[Round, ...]:
        """Take over what a step brought a sequence: the end of a round, which it returns, and new drafts."""
        drafting = sequence.drafting
        assert drafting is not None, f"sequence {sequence.sequence_id} drafts nothing"
        assert len(outcome.draft_ids) <= planned.num_proposals, (
            f"sequence {sequence.sequence_id}: {len(outcome.draft_ids)} drafts where {planned.num_proposals} were asked"
        )
        if outcome.draft_ids and (end := self._config.vocab_size) is not None:
            assert min(outcome.draft_ids) >= 0 and max(outcome.draft_ids) < end, (
                f"sequence {sequence.sequence_id}: drafts {outcome.draft_ids} are not all in [0, {end})"
            )
        sequence.drafts = outcome.draft_ids
        self._num_dropped += len(outcome.token_ids) - num_kept
        num_drafted, num_accepted = planned.num_logit_rows - 1, len(outcome.token_ids) - 1
        is_sample, drafting.is_sample = drafting.is_sample, drafting.asks_sample
        # Those beyond the end of the output were verified in vain, whatever came of them.
        num_drafted = min(num_drafted, self._room(sequence) + num_kept)
        num_accepted = min(num_accepted, num_drafted)
        if num_drafted <= 0:
            return ()
        length = self._lengths[drafting.method]
        length.observe_round(
            drafting.odds,
            num_drafted,
            num_accepted,
            num_kept - 1,
            is_sample=is_sample,
            is_fair=drafting.is_foreseeable,
        )
        self._is_still = self._is_still and not length.is_broken
        self._tallies[drafting.method].add(num_drafted, num_accepted, num_kept)
        self._is_news = True
        return (Round(num_drafted, num_accepted, num_kept),)

    def end_step(self, plan: StepPlan, result: StepResult, host_s: float) -> None:
        """Learn what a step cost, `host_s` of it the scheduler. Where nobody listens, it tells nothing new.

        Where the next step is on its way already, nobody waited for the scheduler.
        """
        self._num_live, num_dropped, self._num_dropped = len(plan.sequences), self._num_dropped, 0
        if not self._config.adaptive_drafts or not result.is_whole:
            return
        if not (self._is_due(plan) if self.rests else any(length.is_listening for length in self._lengths.values())):
            return
        self._is_news, times = True, result.times
        proposals = [planned.num_proposals for planned in plan.sequences if planned.num_proposals]
        chunks = [len(planned.token_ids) for planned in plan.sequences if _is_chunk(planned)]
        num_stay = [
            len(planned.token_ids if _is_chunk(planned) else outcome.token_ids)
            for planned, outcome in zip(plan.sequences, result.sequences, strict=True)
        ]
        step = DraftedStep(
            num_rows=plan.num_rows,
            num_prompt_rows=sum(chunks),
            num_starting=len(chunks),
            num_tokens=sum(num_stay) - sum(chunks) - num_dropped,
            num_decodes=len(plan.sequences) - len(chunks),
            num_followed=sum(
                num for planned, num in zip(plan.sequences, num_stay, strict=True) if planned.draft_method.has_kv
            ),
            num_passes=max(plan.num_draft_passes - 1, 0),
            num_further=sum(proposals) - len(proposals),
            is_plain=not proposals and all(planned.num_logit_rows <= 1 for planned in plan.sequences),
            model_s=times.forward_s + times.sample_s,
            extend_s=times.extend_s,
            draft_s=times.draft_s - times.extend_s,
            host_s=0.0 if self._expected else host_s,
        )
        for method, length in self._lengths.items():
            told = step
            if not method.has_kv:  # a look-up is one pass, however much it finds
                extend_s = times.draft_s - times.extend_s
                told = replace(step, num_followed=len(proposals), num_passes=0, extend_s=extend_s)
            length.observe_step(told)

    def status(self) -> tuple[DraftingStatus, ...]:
        """What every method in use does now and brought so far; what requests get by default comes first."""
        if self._is_news:
            self._is_news = False
            methods = dict.fromkeys((*(one.method for one in self._status), *self._lengths))
            self._status = tuple(map(self._status_of, methods))
        return self._status

    def _status_of(self, method: DraftMethod) -> DraftingStatus:
        length = self._lengths.get(method)
        if length is None:
            return DraftingStatus(method=method)
        return DraftingStatus(
            method=method,
            state=length.state,
            length=0 if length.is_off else length.length,
            reason=length.reason,
            counts=self._tallies[method].counts(),
            cost_error=length.cost_error,
        )

    def _new_length(self, method: DraftMethod) -> DraftLength:
        measured = self._config.measured
        if not method.has_kv:  # a look-up costs next to nothing
            measured = tuple(replace(step, extend_s=0.0, draft_s=0.0) for step in measured)
        return DraftLength(
            self._config.max_drafts,
            is_adaptive=self._config.adaptive_drafts,
            is_judged=method.has_kv,
            measured=measured,
        )

    def _is_due(self, plan: StepPlan) -> bool:
        """Whether to listen to a step in which nothing drafts."""
        return plan.step_id % (_LISTEN_SELDOM if len(plan.sequences) < _FEW else _LISTEN_EVERY) == 0

    def _length(self, method: DraftMethod) -> DraftLength:
        """Of a method in use, which knows of all steps."""
        self._tell_rested()
        return self._lengths[method]

    def _tell_rested(self) -> None:
        """Let the lengths know of steps that passed without them."""
        if self._num_rested:
            for length in self._lengths.values():
                length.rest_for(self._num_rested)
            self._num_rested = 0

    def _look_whether_all_rest(self) -> None:
        self.rests = all(length.is_off for length in self._lengths.values())

    def _standing(self, sequence: Sequence, num_drafts: int) -> Foreseen | None:
        """What was foreseen of a sequence's step, if it has so many drafts and still the blocks."""
        foreseen = self._foreseen.get(sequence.sequence_id)
        if foreseen is None or foreseen.num_drafts != num_drafts:
            return None
        end = len(sequence.tokens) + num_drafts + foreseen.num_proposals
        return foreseen if self._tables.has_room(sequence, end) else None

    def _room(self, sequence: Sequence) -> int:
        """Drafts beyond which the step would run into the end of the output or of the context."""
        left = sequence.sampling.max_tokens - sequence.num_output
        return min(left, self._context_limit - len(sequence.tokens)) - 1


def _is_chunk(planned: SequencePlan) -> bool:
    """Whether it has rows of a prompt: such as have no logits."""
    return len(planned.token_ids) > planned.num_logit_rows


def _is_foreseeable(sampling: SamplingParams) -> bool:
    """Whether the tokens drawn are those that the model finds likely, so that a right head meets some of them."""
    return sampling.temperature <= 1.0 and not sampling.logit_bias
