"""The report: one well-formed file with everything in it, and numbers that are where they belong."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from sigmoe.errors import Unavailable
from sigmoe.loadtest import report
from sigmoe.loadtest.arrivals import Arrivals
from sigmoe.loadtest.document import Document, Percentile
from sigmoe.loadtest.expressions import level_expression, request_expression
from sigmoe.loadtest.load import Closed, Open, Schedule
from sigmoe.loadtest.plan import Finding
from sigmoe.loadtest.report import render
from sigmoe.loadtest.scale import duration, plain, round_time, scale_of
from sigmoe.loadtest.search import Range
from sigmoe.loadtest.svg import Axes, Point, Series, bar_chart, line_chart
from tests.sigmoe.loadtest.levels import document
from tests.sigmoe.loadtest.virtual_time import SimulatedServer

HOSTILE = """<script>alert("x")</script> & 'more'"""


def swept() -> Document:
    return document(
        SimulatedServer(), Closed(concurrency=1), Closed(concurrency=4), label=HOSTILE, arguments={"x": HOSTILE}
    )


def searched() -> Document:
    finding = Finding(objectives=[level_expression("ttft_p99 < 1s", "x")], within=Range(most=4.0))
    load = Open(arrivals=Arrivals(rate=1.0))
    return document(SimulatedServer(), load, finding=finding, num_ranks=6, slo=[request_expression("ttft < 1s", "x")])


def dead() -> Document:
    schedule = Schedule(duration_s=5.0)
    server = SimulatedServer(failures=[Unavailable("<gone>")] * 1000)
    fail_if = [level_expression("ttft_p99 > 1s", "x")]
    return document(server, Closed(concurrency=1), schedule=schedule, num_ranks=0, fail_if=fail_if)


@pytest.mark.parametrize("make", [swept, searched, dead])
def test_the_page_is_well_formed_and_needs_nothing_else(make: object) -> None:
    page = render(make())  # type: ignore[operator]
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert not re.search(r"https?:|//|url\(|@import|src=|href=|<script|<link", page)
    text = "".join(root.itertext())
    assert "nan" not in re.sub(r"[A-Za-z]nan|nan[A-Za-z]", "", text)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
                assert -1 <= float(value.rstrip("%")) <= 625, f"{element.tag} {name}={value} lies outside"


def test_all_plots_are_there() -> None:
    page = render(swept())
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    for wanted in (
        "Throughput and time to first token",
        "Requests per second",
        "Requests under way",
        "KV cache in use",
        "Sequences on the server",
        "Rows by expert, over all MoE layers and ranks",
        "Time to first token: ",
        "Inter-token latency: ",
    ):
        assert any(title.startswith(wanted) for title in titles), wanted
    assert "&lt;script&gt;" in page and "max_sequences" in page


def test_a_search_shows_its_trials() -> None:
    page = render(searched())
    assert "<strong>4 requests/s</strong>" in page and "nothing above it was tried" in page
    assert "goodput/s" in page


def test_a_run_without_an_answer_has_a_report_too() -> None:
    page = render(dead())
    assert "UNAVAILABLE, for instance: &lt;gone&gt;" in page and "nothing was measured" in page


def test_labels_meet_neither_each_other_nor_points() -> None:
    points = [Point(x=100.0 + i * 0.5, y=1.0 + i * 0.01, label=f"{2**i}") for i in range(12)]
    svg = line_chart("t", Axes(x="x", y="y"), [Series(name="a", color=0, points=points, has_marks=True)])
    labels = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)">(\d+)<', svg)
    boxes = [(float(x), float(y) - 9, float(x) + 6.6 * len(t), float(y)) for x, y, t in labels]
    assert len(boxes) >= 2
    for i, (a, b, c, d) in enumerate(boxes):
        assert all(c <= e or a >= g or d <= f or b >= h for e, f, g, h in boxes[i + 1 :])


def test_lines_have_gaps_where_nothing_was_measured() -> None:
    points = [Point(x=float(i), y=None if i == 2 else 1.0) for i in range(6)]
    svg = line_chart("t", Axes(x="x", y="y"), [Series(name="a", color=0, points=points)])
    assert svg.count("<polyline") == 2


def test_a_single_value_is_a_histogram_too() -> None:
    assert bar_chart("t", Axes(x="x", y="y"), (0.0, 0.0), (3,)).count('class="bar"') == 1


@pytest.mark.parametrize("most", [1e-6, 0.3, 1, 7, 99, 100, 101, 123456])
def test_ticks_are_round_and_cover_the_values(most: float) -> None:
    scale = scale_of([0.0, most], 0.0, 100.0)
    ticks = scale.ticks()
    assert 3 <= len(ticks) <= 8 and ticks[0] == 0.0 and ticks[-1] >= most * (1 - 1e-9)
    assert all(len(f"{tick / ticks[1]:.6g}") <= 2 for tick in ticks)


def test_values_that_span_much_get_a_logarithmic_axis() -> None:
    scale = scale_of([0.003, 4.0], 0.0, 100.0, may_be_log=True)
    assert scale.is_log and (scale.low, scale.high) == (0.002, 5.0)
    assert scale.at(0.1) == pytest.approx(50.0, abs=1)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())


def test_numbers_are_short() -> None:
    assert [plain(v) for v in (0.0, 0.123456, 12.345, 123456.0)] == ["0", "0.123", "12.3", "123,456"]
    assert [round_time(v) for v in (0.0, 0.00123, 0.45, 2.345, 1234.0)] == [
        "0 ms",
        "1.23 ms",
        "450 ms",
        "2.35 s",
        "1,234 s",
    ]


def test_times_that_were_measured_have_three_digits() -> None:
    seconds = (0.0, 17e-6, 99.96e-6, 0.00123, 0.033, 0.585, 0.9996, 1.1, 45.0, 1234.0)
    assert [duration(v) for v in seconds] == [
        "0 ms", "17.0 us", "0.100 ms", "1.23 ms", "33.0 ms", "585 ms", "1.00 s", "1.10 s", "45.0 s", "1,234 s",
    ]  # fmt: skip


def test_an_interval_leaves_out_the_unit_of_its_value() -> None:
    def interval(low: float | None, value: float, high: float | None) -> str:
        return report._interval(Percentile(percent=99.0, value=value, low=low, high=high), duration)

    assert interval(0.0877, 0.0901, 0.0987) == "87.7 to 98.7"
    assert interval(0.9, 1.31, 1.42) == "900 ms to 1.42 s"
    assert interval(None, 0.0901, 0.0987) == "? to 98.7"
    assert interval(None, 0.0901, None) == "? to ?"
