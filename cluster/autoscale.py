"""How many replicas a load needs: pure, from what is observed to a number and the reason for it.

Each look at the load yields a number that would do at this moment. More replicas are wanted once every look for
`up_after_s` asked for more, fewer once none for `down_after_s` asked for as many; between two changes lies a
cool-down. The marks for growing and for shrinking are `_CALM` apart, so that a load between them changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_STARTS = 2.0  # times of a start that a queue may take to clear by itself
_CALM = 0.6  # share of the load that made us grow below which we shrink; a smaller one is steadier and costs more


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """What the operator wants; the keys of `scaling` in the configuration."""

    min_replicas: int = 1
    max_replicas: int = 1
    sequences_per_replica: int = 256  # that run at the same time
    target_queue_s: float = 1.0
    kv_high: float = 0.85  # share of the blocks in use
    slo_share: float = 0.95  # of the answers that must be within their SLO
    up_after_s: float = 3.0
    down_after_s: float = 300.0
    cool_down_s: float = 15.0
    idle_to_zero_s: float = 600.0

    @property
    def is_elastic(self) -> bool:
        """Whether there is anything to decide."""
        return self.max_replicas > self.min_replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the replicas that serve have to do, at one moment."""

    num_serving: int  # replicas
    num_sequences: int = 0  # under way, running or not; as all that follows, without the background if it asks for none
    num_waiting: int = 0  # of these, not running
    num_background: int = 0  # further ones, that ask for no replica but the first
    num_ended: int = 0  # since the start
    queue_s: float = 0.0  # how long the first of those has waited
    kv_use: float = 0.0  # share of the blocks in use, over all ranks
    attainment: float | None = None  # share of recent answers within their SLO; None: no SLO, or no answer

    @property
    def num_all(self) -> int:
        """Sequences under way, of everybody."""
        return self.num_sequences + self.num_background


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is wanted from now on, and why."""

    wanted: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    at_s: float
    enough: int  # replicas that would do
    reason: str
    load: Load


class Autoscaler:
    """Keeps the recent looks at the load. Knows time only as it is told."""

    def __init__(self, policy: ScalingPolicy, wanted: int) -> None:
        self.wanted = wanted
        self._policy = policy
        self._looks: deque[_Look] = deque()
        self._strained: dict[int, int] = {}  # replicas -> sequences under which so many were last too few
        self._num_serving = wanted
        self._changed_s = -math.inf  # when replicas were last asked for, came or went
        self._asked_s: float | None = None  # when the replica that comes next was asked for
        self._start_s = 0.0  # what the last one took to come
        self._busy_s = -math.inf  # when there was last anything to do

    def decide(self, now_s: float, load: Load) -> Decision:
        """Take a look at the load; the answer holds until the next."""
        policy = self._policy
        if load.num_serving != self._num_serving:  # what they change shows only from now on
            if load.num_serving > self._num_serving and self._asked_s is not None:
                self._start_s, self._asked_s = now_s - self._asked_s, None
            self._num_serving, self._changed_s = load.num_serving, now_s
        if load.num_all or self._busy_s == -math.inf:
            self._busy_s = now_s
        look = self._look(now_s, load)
        self._looks.append(look)
        self._forget(now_s)
        if self.wanted == 0:
            return self._from_zero(now_s, load)
        idle_s = now_s - self._busy_s
        if policy.min_replicas == 0 and idle_s >= policy.idle_to_zero_s:
            return self._change(now_s, 0, f"nothing to do for {idle_s:.0f} s")
        up, down = self._least(now_s), self._most(now_s)
        if up is not None and up.enough > self.wanted:
            return self._grow(now_s, up, load)
        if down is not None and down.enough < self.wanted:
            return self._shrink(now_s, down)
        return Decision(wanted=self.wanted, reason=self._steady(look))

    def _look(self, now_s: float, load: Load) -> _Look:
        if load.num_serving == 0:  # nothing to judge by
            return _Look(at_s=now_s, enough=self.wanted, reason="nothing serves yet", load=load)
        enough, reason = needed(load, self._policy)
        if reason:
            enough = max(enough, self.wanted)
        else:
            enough, reason = self._fewer(load)
        least, most = max(1, self._policy.min_replicas), self._policy.max_replicas
        if enough > most:
            enough, reason = most, f"{reason}; {most} is the most allowed"
        elif enough < least:
            enough, reason = least, f"{reason}; {least} is the fewest allowed"
        return _Look(at_s=now_s, enough=enough, reason=reason, load=load)

    def _fewer(self, load: Load) -> tuple[int, str]:
        """The fewest replicas that would bear the load with ease, and why not one less.

        Counted down from those wanted, of which some may still be starting or recovering.
        """
        number = self.wanted
        while number > 1:
            obstacle = self._obstacle(load, number - 1)
            if obstacle:
                return number, obstacle
            number -= 1
        reason = (
            "no mark is passed"
            if number == self.wanted
            else f"{number} would bear {_sequences(load.num_sequences)} with ease"
        )
        return number, reason

    def _obstacle(self, load: Load, number: int) -> str:
        """Why so many would not bear the load with ease; empty where they would."""
        policy = self._policy
        most = _CALM * min(number * policy.sequences_per_replica, self._strained.get(number, math.inf))
        kv_use = load.kv_use * load.num_serving / number
        if load.num_waiting:
            return f"{_sequences(load.num_waiting)} waiting"
        if load.num_sequences > most:
            return f"{_sequences(load.num_sequences)} under way, {number} would bear {most:.0f} with ease"
        if kv_use > _CALM * policy.kv_high:
            return f"{number} would fill {kv_use:.0%} of their KV caches, over {_CALM * policy.kv_high:.0%}"
        if load.attainment is not None and load.attainment < policy.slo_share:
            return f"{load.attainment:.0%} of the answers are within their SLO, under {policy.slo_share:.0%}"
        return ""

    def _least(self, now_s: float) -> _Look | None:
        """The look of the last `up_after_s` that asked for least; None before there were so many."""
        return min(self._since(now_s - self._policy.up_after_s), key=lambda look: look.enough, default=None)

    def _most(self, now_s: float) -> _Look | None:
        """The look of the last `down_after_s` that asked for most; None before there were so many."""
        return max(self._since(now_s - self._policy.down_after_s), key=lambda look: look.enough, default=None)

    def _since(self, start_s: float) -> list[_Look]:
        """The looks after `start_s`, latest first, and the one that held then; nothing where the first came later."""
        held = [look for look in self._looks if look.at_s <= start_s][-1:]
        return [look for look in reversed(self._looks) if look.at_s > start_s] + held if held else []

    def _forget(self, now_s: float) -> None:
        """Drop the looks that no window reaches any more."""
        start_s = now_s - max(self._policy.up_after_s, self._policy.down_after_s, self._policy.cool_down_s)
        while len(self._looks) > 1 and self._looks[1].at_s <= start_s:
            self._looks.popleft()

    def _grow(self, now_s: float, look: _Look, load: Load) -> Decision:
        if (left_s := self._cooling_s(now_s)) > 0:
            return Decision(wanted=self.wanted, reason=f"cooling down for {left_s:.0f} s, though {look.reason}")
        if load.kv_use <= self._policy.kv_high and (clear_s := self._clear_s(now_s, load)) < self._patience_s:
            return Decision(wanted=self.wanted, reason=f"the queue clears in {clear_s:.0f} s, though {look.reason}")
        self._strained[load.num_serving] = load.num_sequences
        self._asked_s = now_s
        return self._change(now_s, min(look.enough, max(self.wanted + 1, self._fair(now_s, load))), look.reason)

    @property
    def _patience_s(self) -> float:
        """A queue that clears sooner is cleared before a new replica could help."""
        return max(self._policy.cool_down_s, _STARTS * self._start_s)

    def _recent(self, now_s: float) -> _Look:
        """The look to compare the present load with; as many replicas served then, thanks to the cool-down."""
        since = self._since(now_s - self._policy.cool_down_s)
        return since[-1] if since else self._looks[0]

    def _fair(self, now_s: float, load: Load) -> int:
        """Replicas by the pace: as many more as sequences arrive faster than those that serve end them."""
        before = self._recent(now_s).load
        ended = load.num_ended - before.num_ended
        arrived = ended + load.num_sequences - before.num_sequences
        return math.ceil(load.num_serving * arrived / ended) if ended > 0 else 2 * load.num_serving

    def _clear_s(self, now_s: float, load: Load) -> float:
        """When nobody will wait any more, if the queue goes on falling as it does.

        What gathered before new replicas served is worked off by them: it asks for no more.
        """
        before = self._recent(now_s)
        fallen = before.load.num_waiting - load.num_waiting
        return load.num_waiting * (now_s - before.at_s) / fallen if fallen > 0 else math.inf

    def _shrink(self, now_s: float, look: _Look) -> Decision:
        if (left_s := self._cooling_s(now_s)) > 0:
            return Decision(wanted=self.wanted, reason=f"cooling down for {left_s:.0f} s, though {look.reason}")
        return self._change(now_s, look.enough, f"for {self._policy.down_after_s:g} s, {look.reason}")

    def _from_zero(self, now_s: float, load: Load) -> Decision:
        if load.num_all == 0:
            return Decision(wanted=0, reason="nothing to do")
        return self._change(now_s, 1, f"{_sequences(load.num_all)} waiting and nothing serves")

    def _change(self, now_s: float, wanted: int, reason: str) -> Decision:
        if wanted != self.wanted:
            self.wanted, self._changed_s = wanted, now_s
        return Decision(wanted=wanted, reason=reason)

    def _cooling_s(self, now_s: float) -> float:
        return self._changed_s + self._policy.cool_down_s - now_s

    def _steady(self, look: _Look) -> str:
        if look.enough > self.wanted:
            return f"waiting whether it lasts {self._policy.up_after_s:g} s: {look.reason}"
        if look.enough < self.wanted:
            return f"waiting whether it lasts {self._policy.down_after_s:g} s: {look.reason}"
        return look.reason


def needed(load: Load, policy: ScalingPolicy) -> tuple[int, str]:
    """The most replicas to ask for where a mark is passed, with the reason; else as many as serve, and no reason.

    At most twice as many: what the new ones take over shows only when they serve.
    """
    serving = load.num_serving
    found = [(serving, "")]
    if load.queue_s > policy.target_queue_s:
        longest = f"the first for {load.queue_s:.1f} s, over {policy.target_queue_s:g} s"
        found.append((2 * serving, f"{_sequences(load.num_waiting)} waiting, {longest}"))
    if load.kv_use > policy.kv_high:
        enough = max(serving + 1, math.ceil(serving * load.kv_use / policy.kv_high))
        found.append((enough, f"{load.kv_use:.0%} of the KV caches are in use, over {policy.kv_high:.0%}"))
    # One sequence has a replica to itself already: more replicas would not make it faster.
    if load.attainment is not None and load.attainment < policy.slo_share and load.num_sequences > serving:
        missed = f"{load.attainment:.0%} of the answers are within their SLO, under {policy.slo_share:.0%}"
        found.append((serving + 1, missed))
    return max(found, key=lambda entry: entry[0])


def _sequences(number: int) -> str:
    return "1 sequence" if number == 1 else f"{number} sequences"
