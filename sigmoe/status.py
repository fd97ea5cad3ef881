"""gRPC statuses to errors, and which of them may be tried again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

from sigmoe.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServerFailure,
    SigmoeError,
    Unavailable,
    Violation,
)

_DETAILS_KEY = "grpc-status-details-bin"


def error_of(error: grpc.RpcError) -> SigmoeError:
    """The typed error for a failed call, with the field violations or the retry hint that it carries."""
    code, message = error.code(), error.details() or ""
    status = _rich_status(error)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(message, _violations(status))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(message, _retry_after_s(status))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(message)
    if code is grpc.StatusCode.CANCELLED:
        return Cancelled(message)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(message)
    return ServerFailure(f"{code.name}: {message}", code.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter; a server's own hint replaces the computed wait.

    Only calls without a response yet are tried again, and only after UNAVAILABLE or RESOURCE_EXHAUSTED:
    nothing was generated then that anybody has seen.
    """

    max_attempts: int = 4
    initial_s: float = 0.1
    max_s: float = 5.0


NO_RETRY = RetryPolicy(max_attempts=1)


class Attempts:
    """The attempts of one call under one deadline: how long each may take, and how long to wait between them."""

    def __init__(self, policy: RetryPolicy, timeout_s: float | None) -> None:
        self._policy = policy
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._num_failed = 0

    def timeout_s(self) -> float | None:
        """What is left for the next attempt."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def wait_s(self, rpc_error: grpc.RpcError, *, has_answered: bool = False) -> float:
        """Seconds to wait before the next attempt; raises the typed error where there must be none."""
        error = error_of(rpc_error)
        self._num_failed += 1
        is_final = self._num_failed >= self._policy.max_attempts
        if has_answered or is_final or not isinstance(error, Unavailable | Overloaded):
            raise error from None
        ceiling_s = min(self._policy.max_s, self._policy.initial_s * 2 ** (self._num_failed - 1))
        hint_s = error.retry_after_s if isinstance(error, Overloaded) else None
        wait_s = hint_s if hint_s is not None else random.uniform(0.0, ceiling_s)
        left_s = self.timeout_s()
        if left_s is not None and wait_s >= left_s:
            raise error from None
        return wait_s


def _rich_status(error: grpc.RpcError) -> status_pb2.Status:
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status.MergeFromString(value)
    return status


def _violations(status: status_pb2.Status) -> list[Violation]:
    found = []
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            found += [Violation(entry.field, entry.description) for entry in bad_request.field_violations]
    return found


def _retry_after_s(status: status_pb2.Status) -> float | None:
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToTimedelta().total_seconds())
    return None
