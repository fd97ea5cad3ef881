"""What a run shows in the terminal: a live line while a level runs, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sigmoe.loadtest.document import Document, Level, Summary
from sigmoe.loadtest.expressions import level_expression
from sigmoe.loadtest.load import Schedule
from sigmoe.loadtest.player import Tally
from sigmoe.loadtest.statistics import percentile

_RECENT_S = 5.0
_COLUMNS = ("ttft", "tpot", "itl", "e2e")


class LiveView:
    """Follows a run on `console`; where that is no terminal each level gets one line at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._pace = _Pace("", Schedule(), Tally())

    def begin(self, label: str, schedule: Schedule, tally: Tally) -> None:
        """A level begins."""
        self._pace = _Pace(label, schedule, tally)
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._pace.picture, refresh_per_second=4)
            self._live.start()

    def end(self, level: Level) -> None:
        """A level has ended."""
        self.close()
        self._console.print(f"{level.label}: {_line(level)}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing, also where a level did not end."""
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live = None


class _Pace:
    """The last few seconds of a level."""

    def __init__(self, label: str, schedule: Schedule, tally: Tally) -> None:
        self._label = label
        self._schedule = schedule
        self._tally = tally
        self._begun_s = time.monotonic()
        self._seen = [(self._begun_s, 0, 0)]  # time, tokens, ended requests

    def picture(self) -> Text:
        now_s, tally = time.monotonic(), self._tally
        self._seen.append((now_s, tally.tokens, len(tally.records)))
        while len(self._seen) > 2 and self._seen[0][0] < now_s - _RECENT_S:
            self._seen.pop(0)
        span_s = max(1e-9, now_s - self._seen[0][0])
        tokens, ended = (tally.tokens - self._seen[0][1]) / span_s, (len(tally.records) - self._seen[0][2]) / span_s
        ttft = sorted(r.ttft_s for r in tally.records[self._seen[0][2] :] if r.ttft_s is not None)
        shown = f"TTFT p50 {_ms(percentile(ttft, 50.0))}, p99 {_ms(percentile(ttft, 99.0))}" if ttft else "TTFT -"
        codes = ", ".join(f"{code} {count}" for code, count in sorted(tally.codes.items())) or "none"
        return Text(
            f"{self._label}  {self._phase(now_s - self._begun_s)}\n"
            f"  sent {tally.sent}, under way {tally.in_flight}; ended: {codes}\n"
            f"  last {min(span_s, _RECENT_S):.0f} s: {ended:.1f} requests/s, {tokens:.0f} tokens/s, {shown}"
        )

    def _phase(self, at_s: float) -> str:
        schedule = self._schedule
        if at_s < schedule.ramp_s:
            return f"ramp {at_s:.0f}/{schedule.ramp_s:g} s"
        if at_s < schedule.measured_from_s:
            return f"warm-up {at_s - schedule.ramp_s:.0f}/{schedule.warmup_s:g} s"
        if at_s >= schedule.stop_s:
            return f"drain {at_s - schedule.stop_s:.0f}/{schedule.drain_s:g} s"
        whole = f"{schedule.duration_s:g} s" if schedule.num_requests is None else f"{schedule.num_requests} requests"
        done = f"{at_s - schedule.measured_from_s:.0f}" if schedule.num_requests is None else f"{self._tally.sent} sent"
        return f"measuring {done}/{whole}"


def _line(level: Level) -> str:
    counts, rates = level.counts, level.rates
    failed = ", ".join(f"{code} {count}" for code, count in counts.failed.items())
    endings = f"{counts.ok}/{counts.measured} answered" + (f" ({failed})" if failed else "")
    return f"{endings} in {rates.window_s:.1f} s, {rates.output_tokens:.0f} tokens/s"


def show(document: Document, console: Console) -> None:
    """The result for people."""
    table = Table(title=document.label or None, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    for name in ("load", "answered", "failed", "req/s", "tokens/s"):
        table.add_column(name, justify="left" if name == "load" else "right", overflow="fold")
    for name in ("TTFT", "TPOT", "ITL", "E2E"):
        table.add_column(f"{name} ms\np50 / p99", justify="right", overflow="fold")
    if document.slo:
        table.add_column("goodput/s", justify="right", overflow="fold")
    for level in document.levels:
        table.add_row(*_row(level, has_slo=bool(document.slo)))
    console.print(table)
    remarks: dict[str, list[str]] = {}
    for level in document.levels:
        for text in _remarks(level):
            remarks.setdefault(text, []).append(level.label)
    for text, labels in remarks.items():
        where = "all loads" if len(labels) == len(document.levels) > 1 else ", ".join(labels)
        console.print(f"{where}: {text}", highlight=False, soft_wrap=True)
    _show_verdicts(document, console)


def _row(level: Level, *, has_slo: bool) -> Sequence[str]:
    counts, rates = level.counts, level.rates
    return [
        level.label,
        f"{counts.ok}/{counts.measured}",
        str(sum(counts.failed.values()) + counts.unfinished),
        f"{rates.completed:.2f}",
        f"{rates.output_tokens:.0f}",
        *(_cell(level.measures.get(name)) for name in _COLUMNS),
        *(["-" if rates.goodput is None else f"{rates.goodput:.2f}"] if has_slo else []),
    ]


def _remarks(level: Level) -> Sequence[str]:
    told = [f"{code}: {count}" for code, count in level.counts.failed.items()]
    examples = [f"{code}, for instance: {text}" for code, text in level.counts.examples.items()]
    return [*(["failed: " + ", ".join(told)] if told else []), *examples, *level.warnings]


def _show_verdicts(document: Document, console: Console) -> None:
    if document.search is not None:
        for trial in document.search.trials:
            if not trial.is_kept:
                console.print(f"rate {trial.rate:g}/s: not kept: {trial.why}", highlight=False, soft_wrap=True)
        found, goals = document.search.best_rate, " and ".join(document.search.objectives)
        text = f"no rate kept {goals}" if found is None else f"highest rate that keeps {goals}: {found:.4g} requests/s"
        bound = "" if document.search.is_bounded else " (nothing above it was tried)"
        console.print(text + bound, highlight=False)
    for check in document.checks:
        value = level_expression(check.expression, "--fail-if").shown(check.value)
        if check.is_true:
            console.print(f"--fail-if {check.expression}: true at {check.level} ({value})", highlight=False)


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    found = {p.percent: 1000 * p.value for p in summary.percentiles}
    return " / ".join(f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in (found[50.0], found[99.0]))


def _ms(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
