"""Objectives: what they mean, and what is said about wrong ones."""

from __future__ import annotations

import pytest

from sigmoe.loadtest.arrivals import Arrivals, Process
from sigmoe.loadtest.document import Level
from sigmoe.loadtest.expressions import level_expression, request_expression
from sigmoe.loadtest.load import Open
from sigmoe.loadtest.record import Record
from tests.sigmoe.loadtest.levels import document
from tests.sigmoe.loadtest.virtual_time import SimulatedServer


@pytest.fixture(scope="module")
def level() -> Level:
    load = Open(arrivals=Arrivals(rate=10.0, process=Process.CONSTANT))
    return document(SimulatedServer(), load, slo=[request_expression("ttft < 1s", "--slo")]).levels[0]


@pytest.mark.parametrize(
    ("text", "is_true"),
    [
        ("ttft_p99 > 9ms", True),
        ("ttft_p99 > 0.011 s", False),
        ("ttft_p99>9000us", True),
        ("ttft_p99.9 >= 0.00001s", True),
        ("ttft_p999 < 1min", True),
        ("tpot_mean <= 10.001ms", True),
        ("e2e_max < 49ms", False),
        ("output_tokens_min >= 5", True),
        ("requests_per_s >= 9.5", True),
        ("requests_per_s < 9.5/s", False),
        ("error_rate > 0%", False),
        ("error_rate <= 0.5", True),
        ("goodput >= 9", True),
        ("cached > 42%", True),
        ("cached > 43%", False),
    ],
)
def test_expressions_of_a_level(level: Level, text: str, is_true: bool) -> None:
    found = level_expression(text, "--fail-if")
    value = found.value_of(level)
    assert value is not None and found.holds(value) is is_true, value


def test_what_was_not_measured_has_no_value(level: Level) -> None:
    assert level_expression("tokens_per_verify > 1", "--fail-if").value_of(level) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttft_p99", "not of the form"),
        ("", "not of the form"),
        ("ttft_p99 = 5ms", "not of the form"),
        ("ttft_p99 < 5ms and tpot_p99 < 1ms", "not of the form"),
        ("tftt_p99 < 5ms", "tftt_p99 is nothing that is measured: ttft"),
        ("ttft_p98 < 5ms", "_p99.9"),
        ("ttft < 5ms", "ttft is nothing that is measured"),
        ("ttft_p99 < 5", "unit missing"),
        ("ttft_p99 < 5%", "unit %: ttft_p99 takes s, ms"),
        ("error_rate < 5ms", "unit ms"),
        ("ttft_p99 < 1.2.3ms", "no number"),
        ("ttft_p99 < nan ms", "not of the form"),
    ],
)
def test_wrong_expressions_name_flag_and_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"--fail-if: ") as caught:
        level_expression(text, "--fail-if")
    assert message in str(caught.value) and repr(text) in str(caught.value)


def test_wrong_expressions_of_a_request() -> None:
    with pytest.raises(ValueError, match=r"--slo: 'ttft_p99 < 1s': ttft_p99 is nothing that a request has: ttft, tpot"):
        request_expression("ttft_p99 < 1s", "--slo")


def test_a_request_keeps_what_it_has_no_value_for() -> None:
    record = Record(
        item=0, round=0, intended_s=1.0, sent_s=1.0, ended_s=3.0, code="OK", responses=((1.5, 1),), usage=None
    )
    assert request_expression("tpot < 1ms", "--slo").is_met_by(record)
    assert request_expression("ttft <= 0.5s", "--slo").is_met_by(record)
    assert not request_expression("ttft < 499ms", "--slo").is_met_by(record)
    assert not request_expression("e2e < 1.9s", "--slo").is_met_by(record)


def test_tokens_of_one_response_share_its_time() -> None:
    record = Record(
        item=0, round=0, intended_s=0.0, sent_s=0.0, ended_s=4.0, code="OK", responses=((1.0, 1), (2.0, 4), (4.0, 1))
    )
    assert record.tpot_s == pytest.approx(3.0 / 5)
    assert record.gaps_s == [1.0, 2.0]
