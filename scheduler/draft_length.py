"""How many tokens to draft: those that make the most of a step, and none where drafting does not pay.

`draft_choice` says which they are, from each sequence's odds and the costs of steps. Odds and costs are measured while
it runs, and fade; costs are known from the start where somebody measured them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from scheduler.draft_choice import Choice, best_choice
from scheduler.draft_costs import DraftCosts, DraftedStep
from scheduler.draft_delivery import Delivery
from scheduler.draft_judge import BROKEN_ROUNDS, DraftJudge
from scheduler.draft_odds import DraftOdds, SharedOdds, Truth, reach
from scheduler.model_cost import RUN
from scheduler.request import DraftingState

_log = logging.getLogger(__name__)

# Promises are a few percent off, either way, and one that is too low is not found out while nothing is drafted.
_GAIN = 1.02  # that drafting must promise to begin
_STAY = 1.0  # and to go on
_NEWS = 0.4  # that a new promise weighs beside those before it, while the batch is the same
_DWELL = 16  # steps between two decisions, at most
_DWELL_ROUNDS = 64  # or so many rounds: more sequences know sooner
_DWELL_SHARE = 0.25  # or so many of those heard so far: what is known well changes slowly
_LEAST_DWELL = 4
_LESSON_ROUNDS = 64  # of all sequences alike, before which nobody knows what drafts are worth
_LESSON_STEPS = 64  # at most, that it is prolonged for until steps with and without drafts were compared
_LESSON_DRAFTS = 3  # in each of them
_OTHER_BATCH = 1.5  # times as many sequences, or as few, are a batch that the choice was not made for
_MORE_EVERY = 96  # steps, of which one tries a draft more
_PLAIN_STEPS = RUN + 2  # without drafts, one after the other: the first one still verifies those asked for before
_PLAIN_LOSS = 0.004  # of the tokens, for such steps, that tell what drafting is compared with
_FOLLOWED = 1.1  # times a plain step, that such a step takes: the draft model follows it
_BURST = 2 * RUN  # steps heard one after the other, while costs are known
_MANY = 8  # sequences, whose steps take so long that each is heard
_PLAIN_FIRST = 12  # steps with drafts in front of them, while costs are those known from the start
_SAMPLE_EVERY = 8  # steps, of which one drafts as far for the unlucky as for the lucky
_SAMPLE_SHARE = 2  # sequences for each of these steps, where there are many: they tell as much in fewer of them
_PROBE_EVERY_IDLE = 16  # while nothing is drafted, before the draft model rests
_PATIENCE = 64  # steps without drafts after which the draft model follows no sequence any more
_TRY_EVERY = 2048  # steps while it rests, after which the next sequence to start is followed, at most
_TRY_FIRST = 64  # after a failure, twice as many after each further one, where another batch lets drafts pay
_TRY_ANYWAY = 4  # times as many where none does
_TRY_SOONEST = 128  # steps, for that
_SUCCESS = 256  # steps of drafting after which it is no failure
_TRIAL_STEPS = 32  # for which drafting is tried then
_EASY_ROUNDS = 6  # of a sequence, that tell nothing in a trial
_TRIAL_PLAIN = range(_TRIAL_STEPS // 2 - _PLAIN_STEPS // 2, _TRIAL_STEPS // 2 + _PLAIN_STEPS // 2)  # without drafts


class DraftLength:
    """The controller of one drafter on one rank. Tells lengths, hears of rounds and steps; never looks at a clock."""

    def __init__(
        self, max_drafts: int, *, is_adaptive: bool, is_judged: bool = True, measured: Iterable[DraftedStep] = ()
    ) -> None:
        """`is_judged`: whether hardly any acceptance means that the drafter is broken, not the text unusual.

        `measured`: what steps cost, as far as it is known from the start.
        """
        self.length = max_drafts  # the longest that any sequence has
        self.reason = "starting" if is_adaptive else f"k={max_drafts}: fixed"
        self.is_broken = False
        self._max_drafts = max_drafts
        self._is_adaptive = is_adaptive
        self._judge = DraftJudge() if is_judged else None
        self._odds = SharedOdds(max_drafts)
        self._truth = Truth()
        self._delivery = Delivery()
        self._promised = 0.0  # of the present choice, by odds and costs alone; 0 where it promised nothing
        self._costs = DraftCosts(measured)
        self._shared = self._odds.odds()
        self._price = 0.0  # the chance that a draft must have to be taken
        self._since_plain = 0  # steps with drafts
        self._plain_every: float = _PLAIN_FIRST  # so many of them
        self._compared: set[int] = set()  # octaves of numbers of decodes that were compared with and without drafts
        self._sampled_at = 0  # the last step in which no draft had a price
        self._choice = Choice(length=max_drafts, price=0.0, gain=1.0)  # outside probes and trials
        self._num_decodes = 0  # of the batch that it was made for
        self._settled_at = 0  # step
        self._num_rounds = 0  # since then
        self._num_heard = 0  # rounds so far
        self._step = 0
        self._num_idle = 0  # steps without drafts
        self._trial_left = 0
        self._turned_at = -_SUCCESS  # the step in which it last went to rest or was tried
        self._retry = 0  # steps between a rest and the next trial where drafts would pay
        self._is_promising = False  # whether drafts would pay for the batch that there is now
        self._promise = 1.0  # of drafting, over the last decisions
        self._is_worth_following = True  # whether they pay for the prompts of new sequences, too

    @property
    def is_off(self) -> bool:
        """Whether the draft model rests: it follows nothing and proposes nothing."""
        return self.is_broken or (self._num_idle >= _PATIENCE and not self._trial_left)

    def new_odds(self) -> DraftOdds:
        """What to keep for a sequence."""
        return DraftOdds(self._max_drafts)

    @property
    def is_trial_due(self) -> bool:
        """Whether the draft model rests, but shall follow the next sequence that it can."""
        is_resting = self.is_off and not self.is_broken
        wait = self._retry if self._is_promising else min(max(_TRY_ANYWAY * self._retry, _TRY_SOONEST), _TRY_EVERY)
        return is_resting and self._step - self._turned_at >= wait

    @property
    def is_sampling(self) -> bool:
        """Whether what is proposed now has no price, so that it tells the odds of all and not of the lucky."""
        return self._sampled_at == self._step

    @property
    def state(self) -> DraftingState:
        """What it does, in a word."""
        if self.is_broken:
            return DraftingState.BROKEN
        if not self._is_adaptive:
            return DraftingState.FIXED
        if self._trial_left:
            return DraftingState.LEARNING
        if self.is_off or not self._choice.length:
            return DraftingState.RESTING
        return DraftingState.LEARNING if self._is_learning else DraftingState.DRAFTING

    @property
    def expected(self) -> list[float]:
        """The odds, by place, of a sequence of which nothing is known."""
        return self._odds.odds()

    @property
    def cost_error(self) -> float:
        """See `DraftCosts`."""
        return self._costs.error

    @property
    def is_listening(self) -> bool:
        """Whether it wants to hear of a step; of short ones before and behind those without drafts, and at times."""
        if not self._choice.length or self._trial_left or self._is_learning or self._num_decodes >= _MANY:
            return True
        is_near_plain = self._since_plain < _BURST or self._since_plain > self._plain_every - _BURST
        return is_near_plain or self._step % _MORE_EVERY < _BURST

    def follows_next(self) -> bool:
        """Whether the draft model shall follow a sequence that starts now."""
        if not self.is_off:
            return self._is_worth_following and self._max_drafts > 0
        if not self.is_trial_due:
            return False
        self._trial_left, self._turned_at = _TRIAL_STEPS, self._step
        self._odds.doubt()
        self._truth.doubt()
        self._delivery.doubt()
        self._is_worth_following, self._is_promising = self._is_promising, False
        return True

    def rests_on(self, num_decodes: int) -> bool:
        """Whether a step of so many decodes needs no `begin_step`, since the draft model rests and goes on to."""
        if not self.is_off or (self._is_other_batch(num_decodes) and not self.is_broken):
            return False
        self._step += 1
        return True

    def rest_for(self, num_steps: int) -> None:
        """So many more steps as the last one, which it rested on."""
        self._step += num_steps

    def begin_step(
        self, num_decodes: int, drafting: Sequence[DraftOdds], num_others: int = 0, *, num_live: int = 0
    ) -> None:
        """Decide for a step of so many decodes, of which those with these odds may have drafts.

        `num_others`: sequences that may have drafts by themselves, but that the draft model does not follow.
        `num_live`: sequences with those at their prompts, if there are more.
        """
        self._step += 1
        if not self._is_adaptive or self.is_broken or not self._max_drafts:
            return
        if not drafting:
            if num_others and not self._is_worth_following and not self.is_off:
                self._rest()
            self._look_again(num_decodes, num_others, num_live)
            return
        if self._is_due(num_decodes):
            self._settle(num_decodes, drafting, num_others, num_live)
        self.length, self._price = self._choice.length, self._choice.price
        if self._trial_left:
            self._try()
        elif self._choice.length and self._is_plain_due(num_decodes):
            self.length, self._price = 0, 0.0
        elif self._step % (_MORE_EVERY if self._choice.length else _PROBE_EVERY_IDLE) == 0:
            self.length, self._price = min(self._choice.length + 1, self._max_drafts), 0.0
        elif self._step % max(_SAMPLE_EVERY, num_decodes // _SAMPLE_SHARE) == 0:
            self._price = 0.0
        elif self._is_learning and self.length:
            self.length -= self._step % self.length
        if self._price <= 0.0:
            self._sampled_at = self._step
        self._num_idle = 0 if self._choice.length else self._num_idle + 1
        if self._num_idle == _PATIENCE and not self._trial_left:
            self._rest()

    def length_for(self, odds: DraftOdds, limit: int) -> int:
        """Drafts for one sequence, at most `limit`: as far as each is worth its price."""
        longest = min(self.length, limit)
        if not self._is_adaptive or longest <= 0:
            return max(longest, 0)
        return odds.promise(self._shared, longest, self._price)

    def observe_round(
        self,
        odds: DraftOdds,
        num_drafted: int,
        num_accepted: int,
        num_used: int,
        *,
        is_sample: bool = False,
        witness: str | None = None,
    ) -> None:
        """Hear how one verification ended.

        `num_used`: the accepted drafts in front of the output's end, all that the round was good for.
        `is_sample`: see `is_sampling`, as it was when the drafts were asked for.
        `witness`: the request that it is of, where the drafter could have known (see DraftJudge).
        """
        if self._is_adaptive:
            self._learn(odds, num_drafted, num_used, is_sample)
        if witness is not None and self._judge is not None and self._judge.condemns(witness, num_accepted):
            self._break(self._judge.tau)

    def _learn(self, odds: DraftOdds, num_drafted: int, num_used: int, is_sample: bool) -> None:
        # In a trial all are at their beginnings, which are easier than what follows.
        if is_sample and not (self._trial_left and odds.num_rounds < _EASY_ROUNDS):
            self._odds.observe(num_drafted, num_used)
        odds.observe(num_drafted, num_used)
        promised = odds.promised
        if len(promised) >= num_drafted:
            self._truth.observe(sum(promised if len(promised) == num_drafted else promised[:num_drafted]), num_used)
        self._num_rounds += 1
        self._num_heard += 1

    def observe_step(self, step: DraftedStep) -> None:
        """Hear what a step took."""
        if not self._is_adaptive:
            return
        self._costs.observe(step)
        if self._promised and not (step.is_plain and not self.length):
            self._delivery.add(step, self._costs.paced_s(step))

    def _is_due(self, num_decodes: int) -> bool:
        """Whether it is time to choose anew: for another batch, after a while, or after many rounds."""
        if self._is_other_batch(num_decodes):
            return True
        since = self._step - self._settled_at
        enough = max(_DWELL_ROUNDS, _DWELL_SHARE * self._num_heard)
        return since >= _DWELL or (since >= _LEAST_DWELL and self._num_rounds >= enough)

    def _is_other_batch(self, num_decodes: int) -> bool:
        more, fewer = max(num_decodes, self._num_decodes), min(num_decodes, self._num_decodes)
        return more > _OTHER_BATCH * fewer

    def _settle(self, num_decodes: int, drafting: Sequence[DraftOdds], num_others: int, num_live: int) -> None:
        """Choose the drafts of the next steps, and whether the draft model shall follow new sequences.

        For that, all are counted as if they were followed.
        """
        self._shared = self._odds.odds()
        self._delivery.settle(self._promised, self._costs)
        self._promised = 0.0
        is_other = self._is_other_batch(num_decodes)
        if is_other:
            self._delivery.change_batch()
        is_new = is_other or self._trial_left > 0
        self._num_decodes = num_decodes
        self._settled_at, self._num_rounds = self._step, 0
        if self._is_learning:
            self._begin_lesson(len(drafting) + num_others, num_decodes, num_live)
            return
        chances = [odds.chances(self._shared, self._max_drafts) for odds in drafting]
        truth, delivered = self._truth.factor, self._delivery.factor
        everybody = chances + [reach(self._shared)] * num_others
        best = best_choice(everybody, num_decodes, self._costs, truth, num_live=num_live)
        gain = best.gain * delivered
        self._promise = gain if is_new else self._promise + _NEWS * (gain - self._promise)
        pays = self._is_worth_following = self._promise > (_STAY if self._is_worth_following else _GAIN)
        if not pays:  # the others stay as they are
            best = best_choice(chances, num_decodes, self._costs, truth, num_live=num_live, follows_prompts=False)
            gain = best.gain * delivered
            pays = gain > (_STAY if self._choice.length else _GAIN)
        self._choice = best if pays else Choice(length=0, price=1.0, gain=best.gain)
        self._promised = best.gain if pays and not num_others else 0.0
        self.reason = f"k={self._choice.length}: {gain:.2f} x plain expected at {num_decodes} sequences"
        if not pays:
            self._num_idle = _PATIENCE - 1

    @property
    def _is_learning(self) -> bool:
        is_unsure_of_costs = self._step < _LESSON_STEPS and not self._costs.has_compared
        return is_unsure_of_costs or self._odds.num_rounds < _LESSON_ROUNDS

    def _begin_lesson(self, num_able: int, num_decodes: int, num_live: int) -> None:
        """Until something is known all draft alike, unless drafts that are always right would not pay either."""
        length = min(_LESSON_DRAFTS, self._max_drafts)
        best = best_choice([[1.0] * self._max_drafts] * num_able, num_decodes, self._costs, num_live=num_live)
        pays = best.gain > _GAIN
        self._choice = Choice(length=length if pays else 0, price=0.0 if pays else 1.0, gain=best.gain)
        self.reason = (
            f"k={self._choice.length}: {best.gain:.2f} x plain at {num_decodes} sequences if all were accepted"
        )

    def _is_plain_due(self, num_decodes: int) -> bool:
        """Whether all go without drafts now, so that what that would cost stays known.

        The less drafting promises, the less is lost by it, and the more hangs on it.
        """
        loss = 1.0 - 1.0 / (_FOLLOWED * max(self._promise, 1.0))
        self._plain_every = max(_PLAIN_STEPS * loss / _PLAIN_LOSS, _MORE_EVERY)
        octave = num_decodes.bit_length()
        if octave not in self._compared:
            self._plain_every = _PLAIN_FIRST
        self._since_plain += 1
        if self._since_plain >= self._plain_every:
            self._since_plain = -_PLAIN_STEPS
            self._compared.add(octave)
        return self._since_plain < 0

    def _try(self) -> None:
        """One step of a trial: a draft for everybody, or for nobody, so that the two can be compared.

        Behind the last one the draft model rests, unless drafts pay.
        """
        self._trial_left -= 1
        if self._trial_left:
            self.length, self._price = int(self._trial_left not in _TRIAL_PLAIN), 0.0
        elif not self._choice.length:
            self._rest()

    def _rest(self) -> None:
        is_failure = self._step - self._turned_at < _SUCCESS
        self._retry = min(max(2 * self._retry, _TRY_FIRST), _TRY_EVERY) if is_failure else 0
        self._num_idle, self._turned_at, self._trial_left = _PATIENCE, self._step, 0

    def _look_again(self, num_decodes: int, num_others: int, num_live: int) -> None:
        """While the draft model rests: see whether a batch of another size would make drafts pay."""
        if self.is_off and num_others and self._is_other_batch(num_decodes):
            self._num_decodes = num_decodes
            typical = [reach(self._shared)] * num_others
            best = best_choice(typical, num_decodes, self._costs, self._truth.factor, num_live=num_live)
            self._is_promising = best.gain * self._delivery.factor > _GAIN

    def _break(self, tau: float) -> None:
        """Draft no more: such a head is wired wrongly or made for another model."""
        self.is_broken, self.length = True, 0
        self.reason = f"off: {tau:.2f} tokens a round over {BROKEN_ROUNDS} rounds; the draft model must be wrong"
        _log.warning("event=drafting_off tau=%.3f rounds=%d", tau, BROKEN_ROUNDS)
