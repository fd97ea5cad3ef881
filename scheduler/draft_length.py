"""How many tokens to draft: as many as make the most of a step, and none where drafting does not pay.

Tokens per second at k drafts are batch * tau(k) / T(batch, k), tau(k) = 1 + the sum of the chances that drafts are
reached and accepted. Chances are measured by place in a round, costs by batch and k; both fade.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.draft_costs import DraftCosts
from scheduler.draft_odds import DraftOdds, reach

_log = logging.getLogger(__name__)

_FIRST_ODDS = 0.6  # of the first place, before anything is known
_FIRST_LENGTH = 2
_GAIN = 1.03  # a change must promise this much
_DWELL = 16  # steps between two decisions
_PROBE_EVERY = 96  # steps; a probe takes `_PROBE_STEPS`, of which the first still verifies the drafts before
_PROBE_STEPS = 3
_PATIENCE = 64  # steps without drafts after which the draft model follows no sequence any more
_TRY_EVERY = 1024  # steps while it is off, after which the next sequence to start is followed all the same
_TRIAL_STEPS = 24  # for which drafting is tried on such a sequence
_BROKEN_TAU = 1.05
_BROKEN_ROUNDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedStep:
    """What one step had and took. Seconds of wall-clock time."""

    num_rows: int  # prompt chunks, roots and drafts
    num_decodes: int
    num_proposed: int  # drafts asked for, for the step after
    model_s: float  # forward pass and sampling
    draft_s: float


class DraftLength:
    """The controller of one drafter on one rank. Tells lengths, hears of rounds and steps; never looks at a clock."""

    def __init__(self, max_drafts: int, *, is_adaptive: bool, is_judged: bool = True) -> None:
        """`is_judged`: whether hardly any acceptance means that the drafter is broken, not the text unusual."""
        self.length = min(_FIRST_LENGTH, max_drafts) if is_adaptive else max_drafts
        self.reason = "starting" if is_adaptive else "fixed"
        self.is_broken = False
        self._max_drafts = max_drafts
        self._is_adaptive = is_adaptive
        self._is_judged = is_judged
        self._odds = DraftOdds(max_drafts, decay=0.99, prior_rounds=8.0)
        self._costs = DraftCosts(max_drafts)
        self._shared = [_FIRST_ODDS] * max_drafts  # the odds of everybody, as of the last step
        self._price = 0.0  # of one more draft, in tokens that the same time would yield elsewhere
        self._settled = self.length  # outside probes
        self._step = 0
        self._probe_left = 0
        self._num_idle = 0  # steps without drafts
        self._trial_left = 0
        self._rested_at = 0  # the step since which nothing was tried
        self._num_rounds = self._num_committed = 0  # of the present window of `_BROKEN_ROUNDS`

    @property
    def is_off(self) -> bool:
        """Whether the draft model rests: it follows nothing and proposes nothing."""
        return self.is_broken or (self._num_idle >= _PATIENCE and not self._trial_left)

    def new_odds(self) -> DraftOdds:
        """What to keep for a sequence."""
        return DraftOdds(self._max_drafts, decay=0.9, prior_rounds=4.0)

    @property
    def is_trial_due(self) -> bool:
        """Whether the draft model rests, but shall follow the next sequence that it can."""
        return self.is_off and not self.is_broken and self._step - self._rested_at >= _TRY_EVERY

    def follows_next(self) -> bool:
        """Whether the draft model shall follow a sequence that starts now."""
        if not self.is_off:
            return self._max_drafts > 0
        if not self.is_trial_due:
            return False
        self._trial_left, self._rested_at = _TRIAL_STEPS, self._step
        return True

    def begin_step(self, num_decodes: int, num_drafting: int) -> None:
        """Decide for a step of so many decodes, of which so many may have drafts."""
        self._step += 1
        if not self._is_adaptive or self.is_broken or not self._max_drafts or not num_drafting:
            return
        self._shared = self._odds.carried(_FIRST_ODDS)
        if self._trial_left:
            self._trial_left -= 1
            self.length, self.reason = 1, "k=1: a trial"
            if not self._trial_left:
                self._settle(num_decodes, num_drafting)
                self._num_idle = 0 if self.length else self._num_idle
            return
        if self._probe_left:
            self._probe_left -= 1
            if self._probe_left:
                return
            self.length = self._settled
        if self._step % _DWELL == 0:
            self._settle(num_decodes, num_drafting)
        elif self._step % _PROBE_EVERY == _DWELL // 2 or (
            self._step % _DWELL == _DWELL // 2 and self._is_guessing(num_decodes)
        ):
            self._probe(num_decodes)
        self._num_idle = 0 if self.length else self._num_idle + 1
        if self._num_idle == _PATIENCE:
            self._rested_at = self._step

    def length_for(self, odds: DraftOdds, limit: int) -> int:
        """Drafts for one sequence, at most `limit`: as far as each is worth its price."""
        longest = min(self.length, limit)
        if not self._is_adaptive or longest <= 0:
            return max(longest, 0)
        chance = 1.0
        for place, odd in enumerate(odds.given(self._shared)[:longest]):
            chance *= odd
            if chance < self._price:
                return place
        return longest

    def observe_round(self, odds: DraftOdds, num_drafted: int, num_accepted: int) -> None:
        """Hear how one verification ended."""
        odds.observe(num_drafted, num_accepted)
        self._odds.observe(num_drafted, num_accepted)
        self._num_rounds += 1
        self._num_committed += num_accepted + 1
        if self._num_rounds == _BROKEN_ROUNDS:
            self._judge(self._num_committed / self._num_rounds)
            self._num_rounds = self._num_committed = 0

    def observe_step(self, step: DraftedStep) -> None:
        """Hear what a step took. What drafts cost is learnt where all sequences had about as many."""
        if not self._is_adaptive or step.model_s <= 0.0:
            return
        self._costs.observe_model(step.num_rows, step.model_s)
        proposals = round(step.num_proposed / step.num_decodes) if step.num_decodes else 0
        is_even = abs(step.num_proposed - proposals * step.num_decodes) * 8 <= step.num_decodes
        if proposals and is_even:
            self._costs.observe_drafts(step.num_decodes, proposals, step.draft_s)

    def _settle(self, num_decodes: int, num_drafting: int) -> None:
        """Choose the length of the next steps. Sequences without drafts yield a token each whatever it is."""
        share = num_drafting / num_decodes
        costs, chances = self._costs.curve(num_decodes, share), reach(self._shared)
        taus = [1.0 + share * sum(chances[:drafts]) for drafts in range(self._max_drafts + 1)]
        gains = [tau / cost for tau, cost in zip(taus, costs, strict=True)]
        best = max(range(len(gains)), key=lambda drafts: (gains[drafts], -drafts))
        if gains[best] > _GAIN * gains[self._settled] or (best == 0 and gains[self._settled] < 1.0):
            self._settled = best
        self.length = self._settled
        self._price = self._marginal_price(costs, taus) / share
        promise = gains[self._settled] if self._settled else max(gains[1:])
        self.reason = f"k={self._settled}: {promise:.2f} x plain expected at {num_decodes} sequences"

    def _marginal_price(self, costs: Sequence[float], taus: Sequence[float]) -> float:
        """Chance below which the last draft of one sequence costs more than it brings."""
        drafts = self._settled
        return 0.0 if not drafts else taus[drafts] / costs[drafts] * (costs[drafts] - costs[0]) / drafts * 0.7

    def _around(self) -> list[int]:
        """The lengths to compare the present one with."""
        around = (0, self._settled - 1, self._settled + 1)
        return [drafts for drafts in around if 0 <= drafts <= self._max_drafts and drafts != self._settled]

    def _is_guessing(self, num_decodes: int) -> bool:
        """Whether a neighbour's cost was never measured at such a batch."""
        return any(not self._costs.count(num_decodes, drafts) for drafts in self._around())

    def _probe(self, num_decodes: int) -> None:
        """Look at a neighbour for a few steps, the one least measured here, so that its cost and odds stay known."""
        self.length = min(self._around(), key=lambda drafts: self._costs.count(num_decodes, drafts))
        self._probe_left = _PROBE_STEPS
        self._price = 0.0

    def _judge(self, tau: float) -> None:
        """A right head reaches far more even on hard text: below this it is wired wrongly or made for another model."""
        if self._is_judged and tau < _BROKEN_TAU:
            self.is_broken, self.length = True, 0
            self.reason = f"off: {tau:.2f} tokens a round over {_BROKEN_ROUNDS} rounds; the draft model must be wrong"
            _log.warning("event=drafting_off tau=%.3f rounds=%d", tau, _BROKEN_ROUNDS)
