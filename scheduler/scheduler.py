"""Continuous batching: what runs in the next step, and what became of it."""

from __future__ import annotations

from collections.abc import Callable

from scheduler.block_tables import BlockTables
from scheduler.drafting import DraftPlanner
from scheduler.foresight import foreseen_step, is_steady
from scheduler.limits import SchedulerConfig, refuse_impossible
from scheduler.live_requests import LiveRequest, LiveRequests
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepResult, StepTimes, num_draft_passes
from scheduler.queue_policy import service_order, turn
from scheduler.request import (
    DraftMethod,
    FinishReason,
    QueueFull,
    Request,
    RequestRefused,
    Round,
    SchedulerStats,
    TokenDelta,
)
from scheduler.sequence import Sequence, stop_ids

__all__ = ["Scheduler", "SchedulerConfig"]

# Waiting sequences looked at in one step for a short one to let in before its turn.
_WINDOW = 32


class Scheduler:
    """Shares one rank's rows and blocks among requests. `plan` and `commit` take turns.

    A step lets every sequence catch up from the tokens computed to the tokens known, under one budget of rows:
    first those that lack a single row (decodes), then the others, in chunks. `clock` returns monotonic seconds.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._context_limit = config.context_limit
        self._live = LiveRequests()
        self._tables = BlockTables(
            config.num_blocks,
            config.block_size,
            config.prefix_cache,
            max_ahead=3 * config.max_drafts,
            lookahead=1 if config.model_method.has_kv else 0,
        )
        self._drafting = DraftPlanner(config, self._tables)
        self._in_flight: dict[int, Sequence] = {}  # planned and not ended since, by sequence id
        self._ended: list[TokenDelta] = []  # of sequences that ended outside a step, handed out by `commit`
        self._num_added = 0
        self._num_steps = 0
        self._num_preemptions = 0
        self._num_promised = 0  # blocks of this step for sequences that others made way for
        self._times = StepTimes()  # of all steps together
        self._learning_s = 0.0  # what the last step cost
        self._planning_s = 0.0  # of the step that was planned last, as long as the device waited for it

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: there are unfinished sequences or deltas not handed out."""
        return len(self._live) > 0 or bool(self._ended)

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestRefused if it can never run here, QueueFull if too many wait."""
        refuse_impossible(request, self._config)
        if self._live.get(request.request_id) is not None:
            raise RequestRefused("request_id", f"{request.request_id!r} is already running")
        num_waiting = len(self._live.waiting) + self._live.num_held
        if num_waiting + request.num_sequences > self._config.max_waiting and num_waiting:
            raise QueueFull(f"{num_waiting} sequences wait already, at most {self._config.max_waiting} may")
        sequences = [self._new_sequence(request, i) for i in range(request.num_sequences)]
        self._live.add(request, sequences, is_holding=self._config.prefix_cache)
        if request.resumed and (reason := sequences[0].reason_to_end(self._context_limit)):
            self._ended.append(self._end(sequences[0], reason, self._clock()))

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request, whatever it is doing; one that is unknown or has ended is ignored.

        Its last deltas come with the next `commit`; what a step in flight yields for it is dropped.
        """
        live = self._live.get(request_id)
        if live is not None:
            self._end_all(live, reason, self._clock())

    def plan(self) -> StepPlan:
        """Choose the rows of the next step and give their sequences blocks.

        A plan with sequences must be committed before the next one; an empty one may be dropped.
        """
        assert not self._in_flight, f"{len(self._in_flight)} sequences are planned and not committed"
        now_s = self._clock()
        for live in self._live.overdue(now_s):
            self._end_all(live, FinishReason.DEADLINE, now_s)
        self._num_promised = self._make_way() if self._live.waiting else 0
        rows = self._plan_decodes()
        left = self._config.max_rows_per_step - sum(len(planned.token_ids) for planned in rows)
        if self._live.waiting or len(rows) < len(self._live.running):
            rows += self._plan_chunks(left, now_s)
        self._num_steps += 1
        self._planning_s = self._clock() - now_s
        return StepPlan(
            step_id=self._num_steps,
            sequences=tuple(rows),
            num_rows=sum(len(planned.token_ids) for planned in rows),
            num_draft_passes=0 if self._drafting.rests else num_draft_passes(rows),
        )

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Take over what the planned step yielded, and hand out what there is to tell since the last commit.

        Sequences that were planned and are left out of `plan` here did not run: they are planned again.
        """
        assert plan.step_id == self._num_steps, f"step {plan.step_id} is committed, {self._num_steps} was planned last"
        assert result.step_id == plan.step_id, f"result of step {result.step_id} for step {plan.step_id}"
        now_s = self._clock()
        in_flight, self._in_flight = self._in_flight, {}
        deltas, self._ended = self._ended, []
        self._times += result.times
        for planned, outcome in zip(plan.sequences, result.sequences, strict=True):
            sequence = in_flight[planned.sequence_id]
            if sequence.finish_reason is None and (delta := self._advance(sequence, planned, outcome, now_s)):
                deltas.append(delta)
        if not self._drafting.is_idle:
            end_s = self._clock()
            self._drafting.end_step(plan, result, self._planning_s + self._learning_s + end_s - now_s)
            self._learning_s = self._clock() - end_s
        return deltas

    def is_steady(self, plan: StepPlan) -> bool:
        """Whether the step after a planned one can be foreseen, unless blocks, rows or the context run out."""
        return is_steady(plan, self._live)

    def foresee(self, plan: StepPlan) -> StepPlan | None:
        """The step after a planned one, before its tokens are known; None unless all of it is certain.

        Its tokens are `UNKNOWN_TOKEN`: those that the planned step chooses and drafts. A sequence that turns out to end
        with it has no row in the next plan, and one that comes meanwhile has rows there that were not foreseen. Takes
        the blocks that the rows need.
        """
        return foreseen_step(plan, self._in_flight, self._drafting, self._config) if self.is_steady(plan) else None

    def stats(self) -> SchedulerStats:
        """A snapshot of queues, blocks and drafting."""
        return SchedulerStats(
            num_waiting=len(self._live.waiting) + self._live.num_held,
            num_running=len(self._live.running),
            num_blocks=self._config.num_blocks,
            num_free_blocks=self._tables.num_free,
            num_cached_blocks=self._tables.num_cached,
            block_size=self._config.block_size,
            num_preemptions=self._num_preemptions,
            prefix_hit_tokens=self._tables.prefix_hit_tokens,
            prefix_query_tokens=self._tables.prefix_query_tokens,
            drafting=self._drafting.status(),
            forward_s=self._times.forward_s,
            sample_s=self._times.sample_s,
            draft_s=self._times.draft_s,
            extend_s=self._times.extend_s,
        )

    def check(self) -> None:
        """Assert that every sequence is in one place and every block accounted for. For tests and idle moments."""
        self._live.check()
        self._tables.check(self._live.running)

    def _new_sequence(self, request: Request, number: int) -> Sequence:
        self._num_added += 1
        arrival_s = self._clock()
        wants_scores = request.sampling.num_prompt_logprobs is not None and number == 0 and not request.resumed
        return Sequence(
            sequence_id=self._num_added,
            index=request.first_sequence_index + number,
            request=request,
            turn=turn(arrival_s, request.priority, self._config.ageing_s),
            arrival_s=arrival_s,
            stop_token_ids=stop_ids(request.sampling, self._config.eos_token_ids),
            tokens=[*request.prompt, *request.resumed],
            prompt_scores=[] if wants_scores else None,
            drafting=self._drafting.admit(request),
        )

    def _make_way(self) -> int:
        """Preempt background sequences whose places or blocks those of the foreground wait for.

        For as many as could get rows in this step, and only where they come first in turn: what waited long enough
        in the background stays, and what waits in front of them gets in first. It is done before anything is planned,
        so that no rows are lost. Returns the blocks that are meant for those that get in, which drafts must not take.
        """
        running, room = self._live.running, self._config.max_rows_per_step
        yielding = [sequence for sequence in running if sequence.is_background]  # the last in turn goes first
        line = list(self._live.waiting.first(_WINDOW)) if yielding else []
        while line and line[-1].is_background:  # nobody makes way for them, and in a batch there is nobody else
            line.pop()
        num_blocks = 0
        for num_places, sequence in enumerate(line, start=1):
            if not yielding or room <= 0:
                break
            room -= sequence.num_outstanding
            insists = self._drafting.insists_on_following(sequence)
            num_blocks += self._tables.num_wanted(sequence, must_be_followed=insists)
            while not sequence.is_background and not self._has_room(num_places, num_blocks):
                if not yielding or _place(yielding[-1]) < _place(sequence):
                    return num_blocks
                self._preempt(yielding.pop())
        return num_blocks

    def _has_room(self, num_places: int, num_blocks: int) -> bool:
        """Whether so many sequences with so many blocks could be let in behind this step's decodes."""
        running = self._live.running
        if len(running) + num_places > self._config.max_sequences:
            return False
        num_extended = sum(map(self._tables.lacks_block, running))
        # As `_let_in` will see it: every other running one could still take one more.
        return num_blocks + num_extended + len(running) + num_places - 1 <= self._tables.num_free

    def _plan_decodes(self) -> list[SequencePlan]:
        """One row for every running sequence that lacks just one, and its drafts.

        Blocks are taken from what others reserved ahead, then from the last in line.
        """
        decodes: list[Sequence] = []
        for sequence in list(self._live.running):
            # Preempted by one before it in this very loop, or with more to catch up.
            if sequence.num_outstanding != 1 or not sequence.is_running:
                continue
            while not self._tables.extend(sequence):
                if not self._drafting.is_idle and self._take_back():
                    continue
                self._preempt(self._live.running.last())
                if not sequence.is_running:
                    break
            else:
                decodes.append(sequence)
        if not self._drafting.is_idle:
            self._drafting.begin_step(decodes)
        if self._drafting.rests:
            return [self._plan_rows(sequence, 1) for sequence in decodes]
        return self._plan_verifies(decodes)

    def _plan_verifies(self, decodes: list[Sequence]) -> list[SequencePlan]:
        """The decodes with as many of their drafts as there are rows and blocks for."""
        num_spare = len(self._live.running) + self._num_promised
        left = self._config.max_rows_per_step - len(decodes)
        if self._live.waiting or len(decodes) < len(self._live.running):
            left //= 2  # prompts go on beside
        rows = []
        for sequence in decodes:
            num_drafts = self._drafting.num_drafts(sequence, left, num_spare) if sequence.drafts else 0
            left -= num_drafts
            rows.append(self._plan_rows(sequence, 1, num_drafts))
        return rows

    def _take_back(self) -> bool:
        """Free the blocks that running sequences hold ahead; returns whether there were any."""
        return any([self._tables.trim(sequence) for sequence in self._live.running])

    def _plan_chunks(self, num_rows: int, now_s: float) -> list[SequencePlan]:
        """Share the rows that decodes left among the sequences with more to catch up, letting in waiting ones.

        The first in turn gets half, and what the others leave.
        """
        line = self._catching_up()
        shares: dict[Sequence, int] = {}
        left, share, is_open = num_rows, num_rows if len(line) == 1 else -(-num_rows // 2), True
        for sequence in line:
            if not sequence.is_running:
                # Where one does not fit nobody overtakes it, or it might never.
                is_open = is_open and self._let_in(sequence, now_s)
                if not is_open:
                    continue
            shares[sequence] = min(share, sequence.num_outstanding)
            left -= shares[sequence]
            share = left
            if not left:
                break
        for sequence in shares:
            more = min(left, sequence.num_outstanding - shares[sequence])
            shares[sequence] += more
            left -= more
        return [self._plan_rows(sequence, share) for sequence, share in shares.items()]

    def _catching_up(self) -> list[Sequence]:
        """The sequences that want rows and are not decodes: running ones and as many waiting ones as may come in."""
        running = self._live.running
        num_places = min(self._config.max_sequences - len(running), _WINDOW)
        line = [sequence for sequence in running if sequence.sequence_id not in self._in_flight]
        line += self._live.waiting.first(num_places)
        return service_order(sorted(line, key=_place))

    def _let_in(self, sequence: Sequence, now_s: float) -> bool:
        """Start a waiting sequence if its blocks can be had and every running one could still take one more."""
        insists = self._drafting.insists_on_following(sequence)
        if not self._tables.fill(sequence, num_spare=len(self._live.running), must_be_followed=insists):
            return False
        self._live.start(sequence, self._times)
        self._drafting.enter(sequence)
        if sequence.started_s is None:
            sequence.started_s = now_s
            sequence.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take all blocks back from a running sequence; it waits in its old place and computes everything again."""
        self._live.stop(sequence, self._times)
        self._tables.release(sequence)
        sequence.drafts = ()
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        if sequence.prompt_scores is not None:
            sequence.prompt_scores = []

    def _plan_rows(self, sequence: Sequence, num_rows: int, num_drafts: int = 0) -> SequencePlan:
        self._in_flight[sequence.sequence_id] = sequence
        if self._drafting.rests:
            sequence.is_followed = False  # also in the middle of its prompt
        method = sequence.draft_method
        if method is DraftMethod.NONE:
            return sequence.rows(num_rows)
        is_sampled = num_rows == sequence.num_outstanding
        num_spare = len(self._live.running) + self._num_promised
        num_proposals = self._drafting.num_proposals(sequence, num_drafts, num_spare) if is_sampled else 0
        return sequence.drafted_rows(num_rows, method, num_drafts, num_proposals)

    def _advance(
        self, sequence: Sequence, planned: SequencePlan, outcome: SequenceResult, now_s: float
    ) -> TokenDelta | None:
        """Move a sequence past the rows computed and the tokens sampled; returns what there is to tell."""
        if outcome.error:
            self._tables.withdraw(sequence)
            return self._end(sequence, FinishReason.ERROR, now_s, error=outcome.error)
        num_sampled, num_logit_rows = len(outcome.token_ids), planned.num_logit_rows
        assert num_sampled <= num_logit_rows and bool(num_sampled) == bool(num_logit_rows), (
            f"sequence {sequence.sequence_id}: {num_sampled} tokens from {num_logit_rows} rows of logits"
        )
        num_kept = sequence.accept(outcome.token_ids, self._context_limit)
        # A row with logits stays only if its token was kept; all others were known to be right.
        sequence.num_computed = planned.start + len(planned.token_ids) - num_logit_rows + num_kept
        self._tables.publish(sequence, planned.start)
        rounds: tuple[Round, ...] = ()
        if planned.draft_method is not DraftMethod.NONE:
            rounds = self._drafting.settle(sequence, planned, outcome, num_kept)
        if sequence.prompt_scores is not None:
            sequence.prompt_scores += outcome.prompt_logprobs
        if self._live.num_held and sequence.num_computed >= sequence.num_prompt:
            self._live.let_go(self._live.of(sequence))
        if not num_kept and sequence.num_outstanding:
            return None
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        return self._tell(sequence, outcome, num_kept, rounds, now_s)

    def _tell(
        self, sequence: Sequence, outcome: SequenceResult, num_kept: int, rounds: tuple[Round, ...], now_s: float
    ) -> TokenDelta:
        """What a step added to a sequence, which ends here if it has a reason or nothing left to compute."""
        reason = sequence.finish_reason if sequence.num_outstanding else FinishReason.LENGTH
        if reason is not None:
            self._leave(sequence, reason)
        return TokenDelta(
            request_id=sequence.request.request_id,
            sequence_index=sequence.index,
            token_ids=outcome.token_ids[:num_kept],
            rounds=rounds,
            logprobs=outcome.logprobs[:num_kept],
            prompt_logprobs=sequence.take_prompt_scores(),
            finish_reason=reason,
            usage=None if reason is None else sequence.usage(now_s),
        )

    def _end_all(self, live: LiveRequest, reason: FinishReason, now_s: float) -> None:
        """End a request outside a step."""
        for sequence in list(live.unfinished.values()):
            self._ended.append(self._end(sequence, reason, now_s))

    def _end(self, sequence: Sequence, reason: FinishReason, now_s: float, error: str = "") -> TokenDelta:
        """End a sequence without a further token; returns its last delta."""
        self._leave(sequence, reason)
        return TokenDelta(
            request_id=sequence.request.request_id,
            sequence_index=sequence.index,
            finish_reason=reason,
            error=error,
            usage=sequence.usage(now_s),
        )

    def _leave(self, sequence: Sequence, reason: FinishReason) -> None:
        """The one way out. Blocks of a step in flight may go at once: nobody gets them before the next plan."""
        sequence.finish_reason = reason
        self._live.remove(sequence, self._times)
        self._tables.release(sequence)


def _place(sequence: Sequence) -> tuple[float, int]:
    """Of a sequence in line: equal turns go by arrival, for who yields as for who comes next, or the two never end."""
    return sequence.turn, sequence.sequence_id
