"""What the terminal shows while a run goes on."""

from __future__ import annotations

import io
import re

from rich.console import Console

from sigmoe.loadtest.display import LiveView
from sigmoe.loadtest.load import Closed, Schedule
from sigmoe.loadtest.player import Tally
from sigmoe.loadtest.record import Record
from tests.sigmoe.loadtest.levels import document
from tests.sigmoe.loadtest.virtual_time import SimulatedServer


def view(*, is_terminal: bool) -> tuple[LiveView, io.StringIO]:
    out = io.StringIO()
    return LiveView(Console(file=out, force_terminal=is_terminal, width=120)), out


def test_a_terminal_sees_the_level_move() -> None:
    live, out = view(is_terminal=True)
    tally = Tally(sent=3, in_flight=2, tokens=40)
    record = Record(item=0, round=0, intended_s=0.0, sent_s=0.0, ended_s=1.0, code="OK", responses=((0.25, 1),))
    live.begin("rate 5/s", Schedule(duration_s=30.0), tally)
    tally.codes["OK"] += 1
    tally.codes["UNAVAILABLE"] += 1
    tally.records.append(record)
    assert live._live is not None
    live._live.refresh()
    live.close()
    shown = out.getvalue()
    assert "rate 5/s  measuring 0/30 s" in shown and "sent 3, under way 2; ended: OK 1, UNAVAILABLE 1" in shown
    assert "TTFT p50 250 ms, p99 250 ms" in shown


def test_the_phases_of_a_level_are_named() -> None:
    from sigmoe.loadtest.display import _Pace

    pace = _Pace("x", Schedule(ramp_s=2.0, warmup_s=3.0, duration_s=10.0, drain_s=7.0), Tally())
    assert [pace._phase(at_s) for at_s in (1.0, 3.0, 6.0, 16.0)] == [
        "ramp 1/2 s",
        "warm-up 1/3 s",
        "measuring 1/10 s",
        "drain 1/7 s",
    ]


def test_elsewhere_each_level_is_a_line() -> None:
    live, out = view(is_terminal=False)
    live.begin("concurrency 2", Schedule(), Tally())
    live.end(document(SimulatedServer(), Closed(concurrency=2)).levels[0])
    assert re.fullmatch(r"concurrency 2: (40\d)/\1 answered in 10\.0 s, 200 tokens/s\n", out.getvalue())
