"""Errors to gRPC statuses: one table, and the details that clients read."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from scheduler.request import RequestRefused
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

# Statuses travel in trailers, of which clients take 8 KiB in all (base64 and percent encoding included).
_MAX_VIOLATIONS = 12
_MAX_FIELD, _MAX_MESSAGE, _MAX_TEXT = 64, 160, 400  # bytes of UTF-8

CODES: dict[type[SigmoeError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Cancelled: grpc.StatusCode.CANCELLED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    ServerFailure: grpc.StatusCode.INTERNAL,
}


def known_error(error: Exception, request_id: str) -> SigmoeError:
    """The error of our tree for any exception. What is not foreseen becomes a ServerFailure with the request's id."""
    if isinstance(error, SigmoeError):
        return error
    if isinstance(error, RequestRefused):
        return InvalidRequest("invalid request", [Violation(error.field, error.message)])
    return ServerFailure(f"request {request_id} failed inside the server; its log has the cause")


def status_of(error: SigmoeError) -> Any:
    """The grpc.Status of an error, for `context.abort_with_status`."""
    code = CODES[type(error)]
    text = _clip(str(error) or code.name, _MAX_TEXT)
    rich = status_pb2.Status(code=getattr(code_pb2, code.name), message=text)
    detail = _detail(error)
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    return rpc_status.to_status(rich)


def _detail(error: SigmoeError) -> message.Message | None:
    if isinstance(error, InvalidRequest) and error.violations:
        bad_request: message.Message = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=_clip(violation.field, _MAX_FIELD), description=_clip(violation.message, _MAX_MESSAGE)
                )
                for violation in error.violations[:_MAX_VIOLATIONS]
            ]
        )
        return bad_request
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        retry: message.Message = error_details_pb2.RetryInfo(retry_delay=delay)
        return retry
    return None


def _clip(text: str, num_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= num_bytes:
        return encoded.decode()
    return encoded[: num_bytes - 3].decode(errors="ignore") + "..."
