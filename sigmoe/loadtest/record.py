"""One request as the client saw it, and the times that follow from it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from sigmoe.results import Usage

OK = "OK"
UNFINISHED = "UNFINISHED"  # no gRPC code: the load test itself ended the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Times are seconds since the level began. `responses` are (time, tokens) of each response that brought tokens.

    ```
    intended ── send lag ── sent ────── first response ── ... ── ended
       [───────────────── TTFT ─────────────)
       [──────────────────────── end to end ──────────────────────)
    ```
    """

    item: int  # number of the arrival, from 0
    round: int  # of its conversation, from 0
    intended_s: float
    sent_s: float
    ended_s: float
    code: str
    error: str = ""
    finish_reason: str = ""
    responses: tuple[tuple[float, int], ...] = ()
    usage: Usage | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it was answered to its end."""
        return self.code == OK

    @property
    def send_lag_s(self) -> float:
        """How late the client itself was."""
        return self.sent_s - self.intended_s

    @property
    def e2e_s(self) -> float:
        """From the intended send time to the end."""
        return self.ended_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        """From the intended send time to the first token."""
        return self.responses[0][0] - self.intended_s if self.responses else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first response; None where no token came later."""
        later = sum(tokens for _, tokens in self.responses[1:])
        return (self.responses[-1][0] - self.responses[0][0]) / later if later else None

    @property
    def gaps_s(self) -> list[float]:
        """Times between one response with tokens and the next."""
        return [later - earlier for (earlier, _), (later, _) in itertools.pairwise(self.responses)]
