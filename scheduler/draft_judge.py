"""Whether a draft model can be right at all."""

from __future__ import annotations

from scheduler.request import SamplingParams

BROKEN_TAU = 1.05  # a right head reaches far more even on hard text
BROKEN_ROUNDS = 200
_LEAST_REQUESTS = 8  # that these are of
_MOST_EACH = BROKEN_ROUNDS // _LEAST_REQUESTS
# Penalties in these bounds take a tenth of the shipped head's tau at most. With a repetition penalty of 2.0 it was
# 1.045 over 200 rounds, with a frequency penalty of -2.0 even 1.0.
_LEAST_REPETITION, _MOST_REPETITION = 0.8, 1.25
_MOST_PRESENCE = 2.0


class DraftJudge:
    """Hears of rounds and tells, every `BROKEN_ROUNDS` of them, whether so few drafts were accepted that the drafter
    must be wired wrongly or made for another model.

    It should hear only of text that the model finds likely: what very hot sampling draws no head can foresee. An eighth
    of the rounds at most are of one request: its text may be odd, and the drafter serves all.
    """

    def __init__(self) -> None:
        self._num_rounds = self._num_committed = 0
        self._heard: dict[str, int] = {}  # rounds by request
        self.tau = 0.0  # of the last whole window

    def condemns(self, request_id: str, num_accepted: int) -> bool:
        """Hear of a round of a request; returns whether the window that it ends is too poor."""
        num_heard = self._heard.get(request_id, 0)
        if num_heard >= _MOST_EACH:
            return False
        self._heard[request_id] = num_heard + 1
        self._num_rounds += 1
        self._num_committed += num_accepted + 1
        if self._num_rounds < BROKEN_ROUNDS:
            return False
        self.tau = self._num_committed / self._num_rounds
        self._num_rounds = self._num_committed = 0
        self._heard.clear()
        return self.tau < BROKEN_TAU


def is_foreseeable(sampling: SamplingParams) -> bool:
    """Whether the tokens drawn are those that the model finds likely, so that a right head meets some of them.

    A frequency penalty grows with the output, so however small it is, it decides in the end.
    """
    return (
        sampling.temperature <= 1.0
        and not sampling.logit_bias
        and _LEAST_REPETITION <= sampling.repetition_penalty <= _MOST_REPETITION
        and abs(sampling.presence_penalty) <= _MOST_PRESENCE
        and sampling.frequency_penalty == 0.0
    )
