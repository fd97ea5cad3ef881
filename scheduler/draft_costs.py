"""What a step costs on this machine: the model by its rows, the draft model by the rows that it follows and by the
sequences that it drafts further for. All times are relative to the machine's pace of the moment (see `model_cost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.cost_curve import CostCurve
from scheduler.model_cost import ModelCost
from scheduler.prompt_load import PromptLoad

_DECAY = 0.97  # of what was known of the scheduler's time, by each new measurement
_GROUP_DECAY = 0.9  # of what was known of the other ranks' sequences
_NUM_KNOWN = 2  # measurements that one known from the start counts for
_FOLLOW_SHARE = 0.1  # of the model's time that the draft model takes over as many rows, while nothing is measured
_NUM_HOST = 4  # measurements that what is known of the other kind of steps counts for
_MOST_HOST_RATIO = 2.0  # times what is expected, that one step counts for: something else had the host
_USUAL_HOST_SHARE = 0.05  # that may be expected of any


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedStep:
    """What one step had and took. Seconds of wall-clock time."""

    num_rows: int  # prompt chunks, roots and drafts
    num_prompt_rows: int = 0  # of them, those of chunks
    num_starting: int = 0  # sequences that these are of
    num_tokens: int = 0  # committed by the others
    num_decodes: int = 0  # those others
    num_followed: int = 0  # rows that the draft model followed, from which come the first drafts
    num_passes: int = 0  # of the draft model behind that, one for each draft more
    num_further: int = 0  # drafts that these made
    group_rows: float = 1.0  # of a rank of the group, on average, for each row here: what the step's time depends on
    group_sequences: float = 1.0  # the same of sequences
    is_plain: bool = False  # whether it neither verified drafts nor asked for any
    model_s: float  # forward pass and sampling
    extend_s: float = 0.0  # following, and the first drafts
    draft_s: float = 0.0  # the further passes
    host_s: float = 0.0  # planning, and taking over what came of it


class _HostShare:
    """The scheduler's time in a step, relative to the model's over a row of each sequence: drafts hardly change it.

    An arithmetic mean, since steps launched ahead have 0. The first measurement decides as little as any other: it may
    be the one in which something else had the host.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._count = _NUM_HOST

    def add(self, share: float) -> None:
        self._count += 1
        weight = max(1.0 - _DECAY, 1.0 / self._count)
        self.share += weight * (min(share, _MOST_HOST_RATIO * max(self.share, _USUAL_HOST_SHARE)) - self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerDecode:
    """What a step with drafts has for each of its decodes, on average."""

    num_rows: float  # its root and its drafts
    num_tokens: float  # that it commits
    num_followed: float  # rows that the draft model follows, from which come the first drafts
    further: Sequence[float]  # drafts behind those, by pass
    follows_prompts: bool  # whether the draft model follows the prompts' rows, too


class DraftCosts:
    """Learns from every step, those with prompt chunks too.

    The ranks of a group share the experts, so a pass takes what the rows of all cost, and a rank that draws its own
    conclusion makes all of them wait. So costs are kept by a rank's rows on average, and rates are those of a group in
    which all have this average of sequences and do as this rank does: what is best for that is best for the group.

    `measured`: steps known at the start, all timed at the same pace.
    """

    def __init__(self, measured: Iterable[DraftedStep] = ()) -> None:
        self._model = ModelCost()
        self._extend = CostCurve()  # by rows followed
        self._pass = CostCurve()  # by sequences
        self._host_shares: dict[bool, _HostShare] = {}  # by whether a step was plain
        self._prompts = PromptLoad()
        self._breadth = 1.0  # sequences of a rank of the group, on average, for each one here
        for step in measured:
            self._model.know(step.num_rows, step.model_s, _NUM_KNOWN)
            self._take(step, _NUM_KNOWN)

    def observe(self, step: DraftedStep) -> None:
        """Take in what a step took; one that nobody timed, or that had no rows, is left out."""
        if step.model_s > 0.0 and step.num_rows:
            self._model.observe(
                step.num_rows,
                step.model_s,
                num_prompt_rows=step.num_prompt_rows,
                is_plain=step.is_plain,
                group_rows=step.group_rows,
            )
            self._breadth += (1.0 - _GROUP_DECAY) * (step.group_sequences - self._breadth)
            self._take(step)
            self._prompts.observe(step.num_tokens, step.num_prompt_rows, step.num_starting)
            if step.is_plain not in self._host_shares:
                self._host_shares[step.is_plain] = _HostShare(self._host_share(is_plain=step.is_plain))
            model_s = self.model_s(self._breadth * (step.num_decodes + step.num_starting)) * self._model.pace
            self._host_shares[step.is_plain].add(step.host_s / model_s)

    def _take(self, step: DraftedStep, count: float = 1.0) -> None:
        """The draft model's time."""
        pace = self._model.pace
        if step.num_followed:
            self._extend.observe(step.num_followed, step.extend_s / pace, count)
        if step.num_passes and step.num_further:  # else the passes were for sequences of other ranks alone
            pass_s = step.draft_s / step.num_passes
            self._pass.observe(step.num_further / step.num_passes, pass_s / pace, count)

    @property
    def error(self) -> float:
        """Of what was expected of a pass of the model, relative to what it took; fading mean."""
        return self._model.error

    def model_s(self, num_rows: float, num_prompt_rows: float = 0.0) -> float:
        """Seconds of the model over so many rows and so many of prompts, at the pace of 1; 1 where nothing is known."""
        return self._model.seconds(num_rows, num_prompt_rows)

    def extend_s(self, num_rows: float) -> float:
        """Seconds that the draft model takes to follow so many rows and to make the first drafts."""
        seconds = self._extend.seconds(num_rows)
        return _FOLLOW_SHARE * self.model_s(num_rows) if seconds is None else seconds

    def draft_s(self, wanting: Sequence[float]) -> float:
        """Seconds of the further passes; entry i is the number of sequences of pass i."""
        known = [self._pass.seconds(num) for num in wanting if num > 0]
        return sum(self.extend_s(wanting[0]) if seconds is None else seconds for seconds in known)

    @property
    def has_compared(self) -> bool:
        """Whether steps with and without drafts were ever held against each other."""
        return self._model.has_compared

    def paced_s(self, step: DraftedStep) -> float:
        """Seconds of a step at the pace of 1, had all ranks had what this one had."""
        rows, prompt_rows = step.num_rows - step.num_prompt_rows, step.num_prompt_rows
        alike_s = self.model_s(self._breadth * rows, self._breadth * prompt_rows)
        ratio = alike_s / self.model_s(step.group_rows * rows, step.group_rows * prompt_rows)
        return (step.model_s * ratio + step.extend_s + step.draft_s + step.host_s) / self._model.pace

    def plain_rate(self, num_live: float) -> float:
        """Tokens a second that so many sequences decode, those at their prompts included, without a draft model."""
        num_live *= self._breadth
        mix = self._prompts.mix(num_live, 1.0)
        alone_s, beside_s = self.model_s(num_live), self.model_s(mix.num_beside, mix.num_rows)
        host_s = self._host_share(is_plain=True) * alone_s
        seconds = (1.0 - mix.often) * alone_s + mix.often * beside_s + host_s
        return mix.num_decodes / self._breadth / seconds

    def drafted_rate(self, num_live: float, each: PerDecode) -> float:
        """Tokens a second of as many sequences where decodes are verifications."""
        num_live *= self._breadth
        mix = self._prompts.mix(num_live, each.num_tokens)
        followed = mix.num_rows * each.follows_prompts
        alone_s = self.model_s(each.num_rows * num_live) + self.extend_s(each.num_followed * num_live)
        beside_s = self.model_s(each.num_rows * mix.num_beside, mix.num_rows)
        beside_s += self.extend_s(each.num_followed * mix.num_beside + followed)
        # What starts is drafted for at the end of its prompt, as others at the end of a decode.
        draft_s = self.draft_s([num * num_live for num in each.further])
        host_s = self._host_share(is_plain=False) * self.model_s(num_live)
        seconds = (1.0 - mix.often) * alone_s + mix.often * beside_s + draft_s + host_s
        return mix.num_decodes * each.num_tokens / self._breadth / seconds

    def _host_share(self, *, is_plain: bool) -> float:
        """See `_HostShare`; that of the other kind of steps while none was seen."""
        known = self._host_shares.get(is_plain) or self._host_shares.get(not is_plain)
        return 0.0 if known is None else known.share
