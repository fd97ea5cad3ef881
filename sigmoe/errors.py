"""Every error that a user of sigmoe can meet, on either side of the wire.

```
SigmoeError
├── InvalidRequest       a field of the request is wrong            INVALID_ARGUMENT
├── Overloaded           the queue is full; try again later         RESOURCE_EXHAUSTED
├── DeadlineExceeded     the call's time is up                      DEADLINE_EXCEEDED
├── Cancelled            the call was cancelled                     CANCELLED
├── Unavailable          nothing serves there now                   UNAVAILABLE
└── ServerFailure        the server failed; the message has its id  INTERNAL and all others
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong: its path as in the proto, and what is wrong with it."""

    field: str
    message: str


class SigmoeError(Exception):
    """Base of all errors of this package."""


class InvalidRequest(SigmoeError):
    """The request can not be served as it is."""

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        details = "; ".join(f"{violation.field}: {violation.message}" for violation in violations)
        super().__init__(details or message)
        self.violations = tuple(violations)


class Overloaded(SigmoeError):
    """The server admits no more requests now; `retry_after_s` is its hint."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(SigmoeError):
    """The deadline passed before the answer was complete."""


class Cancelled(SigmoeError):
    """The call was cancelled."""


class Unavailable(SigmoeError):
    """No server answers there, or no rank serves behind it."""


class ServerFailure(SigmoeError):
    """The server failed on this call; `code` is the canonical status name."""

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        super().__init__(message)
        self.code = code
