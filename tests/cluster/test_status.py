from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from cluster.status import CODES, known_error, status_of
from scheduler.request import RequestRefused
from sigmoe import errors
from sigmoe.errors import InvalidRequest, Overloaded, ServerFailure, SigmoeError, Unavailable, Violation


def rich(status: object) -> status_pb2.Status:
    ((key, value),) = status.trailing_metadata  # type: ignore[attr-defined]
    assert key == "grpc-status-details-bin"
    return status_pb2.Status.FromString(value)


def test_every_error_of_the_tree_has_its_code() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SigmoeError)}
    assert set(CODES) == tree - {SigmoeError}
    assert len(set(CODES.values())) == len(CODES)


def test_violations_travel_by_field() -> None:
    status = status_of(InvalidRequest("invalid", [Violation("sampling.top_p", "2 is too much"), Violation("n", "no")]))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "sampling.top_p: 2 is too much; n: no" in status.details
    detail = error_details_pb2.BadRequest()
    assert rich(status).details[0].Unpack(detail)
    found = [(violation.field, violation.description) for violation in detail.field_violations]
    assert found == [("sampling.top_p", "2 is too much"), ("n", "no")]


def test_the_retry_hint_travels() -> None:
    status = status_of(Overloaded("full", 1.5))
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    detail = error_details_pb2.RetryInfo()
    assert rich(status).details[0].Unpack(detail)
    assert detail.retry_delay.ToTimedelta().total_seconds() == 1.5


def test_others_travel_by_code_and_message() -> None:
    status = status_of(Unavailable("loading"))
    assert (status.code, status.details, list(rich(status).details)) == (grpc.StatusCode.UNAVAILABLE, "loading", [])


def test_what_is_not_foreseen_names_the_request_and_hides_the_cause() -> None:
    error = known_error(KeyError("secret"), "1234")
    assert isinstance(error, ServerFailure)
    assert "1234" in str(error) and "secret" not in str(error)


def test_a_refusal_of_the_scheduler_names_its_field() -> None:
    error = known_error(RequestRefused("prompt", "is empty"), "1234")
    assert isinstance(error, InvalidRequest)
    assert error.violations == (Violation("prompt", "is empty"),)


@pytest.mark.parametrize("kind", list(CODES))
def test_ours_stay_as_they_are(kind: type[SigmoeError]) -> None:
    error = kind("message")
    assert known_error(error, "1") is error


@given(st.lists(st.builds(Violation, st.text(max_size=5000), st.text(max_size=5000)), min_size=1, max_size=50))
def test_a_status_always_fits_its_trailer(violations: list[Violation]) -> None:
    status = status_of(InvalidRequest("invalid", violations))
    ((_, value),) = status.trailing_metadata
    assert len(value) * 4 / 3 + len(status.details.encode()) * 3 < 7000
