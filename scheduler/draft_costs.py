"""What a step costs on this machine: the model by its rows, the draft model by the rows that it follows and by the
sequences that it drafts further for. All times are relative to the machine's pace of the moment (see `model_cost`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.cost_curve import CostCurve
from scheduler.model_cost import ModelCost

_DECAY = 0.97  # of what was known of the scheduler's time, by each new measurement
_NUM_KNOWN = 2  # measurements that one known from the start counts for
_FOLLOW_SHARE = 0.1  # of the model's time that the draft model takes over as many rows, while nothing is measured
_PROMPT_DECAY = 0.999  # of the counts of prompt rows and tokens, by each step
_NUM_HOST = 4  # measurements that what is known of the other kind of steps counts for
_MOST_HOST_RATIO = 2.0  # times what is expected, that one step counts for: something else had the host
_USUAL_HOST_SHARE = 0.05  # that may be expected of any
_FIRST_TOKENS = 512.0  # known from the start, without prompts: a full house begins with nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedStep:
    """What one step had and took. Seconds of wall-clock time."""

    num_rows: int  # prompt chunks, roots and drafts
    num_prompt_rows: int = 0  # of them
    num_tokens: int = 0  # committed
    num_decodes: int = 0  # sequences that these are of
    num_followed: int = 0  # rows that the draft model followed, from which come the first drafts
    num_passes: int = 0  # of the draft model behind that, one for each draft more
    num_further: int = 0  # drafts that these made
    is_plain: bool = False  # whether it neither verified drafts nor asked for any
    model_s: float  # forward pass and sampling
    extend_s: float = 0.0  # following, and the first drafts
    draft_s: float = 0.0  # the further passes
    host_s: float = 0.0  # planning, and taking over what came of it


class _HostShare:
    """The scheduler's time in a step, relative to the rest of it, as an arithmetic mean: steps launched ahead have 0.

    The first measurement decides as little as any other: it may be the one in which something else had the host.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._count = _NUM_HOST

    def add(self, share: float) -> None:
        self._count += 1
        weight = max(1.0 - _DECAY, 1.0 / self._count)
        self.share += weight * (min(share, _MOST_HOST_RATIO * max(self.share, _USUAL_HOST_SHARE)) - self.share)


class DraftCosts:
    """Learns from every step, those with prompt chunks too: a row is a row.

    `measured`: steps known at the start, all timed at the same pace.
    """

    def __init__(self, measured: Iterable[DraftedStep] = ()) -> None:
        self._model = ModelCost()
        self._extend = CostCurve()  # by rows followed
        self._pass = CostCurve()  # by sequences
        self._host_shares: dict[bool, _HostShare] = {}  # by whether a step was plain
        self._num_tokens = _FIRST_TOKENS
        self._num_prompt_rows = 0.0
        self._num_chunks = 0.0  # steps with prompt rows
        self._log_chunks = 0.0  # the sum of their numbers' logarithms: one full house shall not set the size
        for step in measured:
            self._model.know(step.num_rows, step.model_s, _NUM_KNOWN)
            self._take(step, _NUM_KNOWN)

    def observe(self, step: DraftedStep) -> None:
        """Take in what a step took; one that nobody timed, or that had no rows, is left out."""
        if step.model_s > 0.0 and step.num_rows:
            self._model.observe(step.num_rows, step.model_s, is_plain=step.is_plain)
            self._take(step)
            if step.is_plain not in self._host_shares:
                self._host_shares[step.is_plain] = _HostShare(self._host_share(is_plain=step.is_plain))
            device_s = step.model_s + step.extend_s + step.draft_s
            self._host_shares[step.is_plain].add(step.host_s / device_s)

    def _take(self, step: DraftedStep, count: float = 1.0) -> None:
        """All but the model's own time."""
        pace = self._model.pace
        if step.num_followed:
            self._extend.observe(step.num_followed, step.extend_s / pace, count)
        if step.num_passes and step.num_further:  # else the passes were for sequences of other ranks alone
            pass_s = step.draft_s / step.num_passes
            self._pass.observe(step.num_further / step.num_passes, pass_s / pace, count)
        self._num_prompt_rows = self._num_prompt_rows * _PROMPT_DECAY + step.num_prompt_rows
        self._num_chunks = self._num_chunks * _PROMPT_DECAY + (step.num_prompt_rows > 0)
        self._log_chunks = self._log_chunks * _PROMPT_DECAY + math.log(max(step.num_prompt_rows, 1))
        self._num_tokens = self._num_tokens * _PROMPT_DECAY + step.num_tokens

    @property
    def error(self) -> float:
        """Of what was expected of a pass of the model, relative to what it took; fading mean."""
        return self._model.error

    def model_s(self, num_rows: float) -> float:
        """Seconds of the model over so many rows, at the pace of 1; 1 where nothing is known."""
        return self._model.seconds(num_rows)

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
        """Seconds of a step at the pace of 1."""
        return (step.model_s + step.extend_s + step.draft_s + step.host_s) / self._model.pace

    def plain_s(self, num_decodes: float) -> float:
        """Seconds of a step without drafts and without a draft model, and of what its tokens bring of prompts."""
        chunk, often = self._prompts(num_decodes)
        device_s = (1.0 - often) * self.model_s(num_decodes) + often * self.model_s(num_decodes + chunk)
        return device_s * (1.0 + self._host_share(is_plain=True))

    def drafted_s(
        self, num_rows: int, num_followed: float, wanting: Sequence[float], num_tokens: float, *, follows_prompts: bool
    ) -> float:
        """Seconds of a step that verifies, follows and drafts, and of what its tokens bring of prompts.

        `wanting`: see `draft_s`. `follows_prompts`: whether the draft model follows the prompts' rows, too.
        """
        chunk, often = self._prompts(num_tokens)
        alone_s = self.model_s(num_rows) + self.extend_s(num_followed)
        beside_s = self.model_s(num_rows + chunk) + self.extend_s(num_followed + chunk * follows_prompts)
        device_s = (1.0 - often) * alone_s + often * beside_s + self.draft_s(wanting)
        return device_s * (1.0 + self._host_share(is_plain=False))

    def _host_share(self, *, is_plain: bool) -> float:
        """The scheduler's time relative to the device's; that of the other kind of steps while none was seen."""
        known = self._host_shares.get(is_plain) or self._host_shares.get(not is_plain)
        return 0.0 if known is None else known.share

    def _prompts(self, num_tokens: float) -> tuple[float, float]:
        """Prompt rows of a step that has any, and the share of steps that do, where a step commits so many tokens.

        Every token brings its share of prompts in the long run: who answers faster is asked more.
        """
        if not self._num_chunks:
            return 0.0, 0.0
        num_rows = self._num_prompt_rows / self._num_tokens * num_tokens
        chunk = max(math.exp(self._log_chunks / self._num_chunks), num_rows)
        return chunk, num_rows / chunk
