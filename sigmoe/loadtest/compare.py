"""Two results side by side: what differs in their settings, and in their figures by load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from sigmoe.loadtest.document import Document, Level, Percentile
from sigmoe.loadtest.scale import duration

# name, measure, percentile; lower is better
_LATENCIES = tuple(
    (f"{name} p{percent:g}", measure, percent)
    for name, measure in (("TTFT", "ttft"), ("ITL", "itl"), ("TPOT", "tpot"), ("end to end", "e2e"), ("queue", "queue"))
    for percent in (50.0, 99.0)
)

_FELT_S = 50e-6  # what a request waits for a place changes by less from minute to minute, and nobody feels it


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of both; `verdict` is empty where chance may explain the difference."""

    name: str
    before: float
    after: float
    verdict: str

    @property
    def change(self) -> float | None:
        """Relative to before."""
        return self.after / self.before - 1 if self.before else None


def lines(before: Level, after: Level) -> Iterator[Line]:
    """What both levels have. Latencies count as different where chance does not explain it, and it can be felt."""
    for name, measure, percent in _LATENCIES:
        if measure in before.measures and measure in after.measures:
            old = _percentile(before, measure, percent)
            new = _percentile(after, measure, percent)
            yield Line(name=name, before=old.value, after=new.value, verdict=_verdict(old, new))
    for name, old_rate, new_rate in (
        ("requests/s", before.rates.completed, after.rates.completed),
        ("output tokens/s", before.rates.output_tokens, after.rates.output_tokens),
        ("goodput/s", before.rates.goodput, after.rates.goodput),
        ("failed", before.rates.error_ratio, after.rates.error_ratio),
        ("tokens per verify", before.rates.tokens_per_verify, after.rates.tokens_per_verify),
    ):
        if old_rate is not None and new_rate is not None:
            yield Line(name=name, before=old_rate, after=new_rate, verdict="")


def differences(before: Document, after: Document) -> Iterator[str]:
    """Settings that are not the same: of the server, the workload and the run."""
    for title, old, new in (
        ("server", before.server.model_dump(exclude={"address"}), after.server.model_dump(exclude={"address"})),
        ("workload", before.workload, after.workload),
        ("slo", list(before.slo), list(after.slo)),
        ("client", before.client, after.client),
    ):
        yield from _differences(title, old, new)
    olds, news = {level.label: level for level in before.levels}, {level.label: level for level in after.levels}
    schedules: dict[str, list[str]] = {}  # difference, loads
    for label in (label for label in olds if label in news):
        for text in _differences("schedule", olds[label].schedule, news[label].schedule):
            schedules.setdefault(text, []).append(label)
    for text, labels in schedules.items():
        yield f"{text} ({', '.join(labels)})"
    for label in (*olds, *news):
        if (label in olds) != (label in news):
            yield f"{label} is only in the {'first' if label in olds else 'second'}"


def show(before: Document, after: Document, console: Console) -> None:
    """Settings first: figures of different tests are not comparable."""
    for text in differences(before, after):
        console.print(f"different: {text}", highlight=False, soft_wrap=True, markup=False)
    news = {level.label: level for level in after.levels}
    for level in before.levels:
        if level.label in news:
            console.print(_table(level, news[level.label]))
    meaning = "better and worse: the 95% confidence intervals of both do not meet, and 50 us or more lie between"
    console.print(meaning, highlight=False)


def _table(before: Level, after: Level) -> Table:
    table = Table(title=f"{before.label} ({before.counts.ok} and {after.counts.ok} answers)", title_justify="left")
    table.add_column("")
    for name in ("first", "second", "change"):
        table.add_column(name, justify="right")
    table.add_column("")
    for line in lines(before, after):
        change = "" if line.change is None else f"{100 * line.change:+.1f}%"
        is_time = line.name.rpartition(" ")[2] in ("p50", "p99")
        shown = (duration(v) if is_time else f"{v:.4g}" for v in (line.before, line.after))
        table.add_row(line.name, *shown, change, line.verdict)
    return table


def _percentile(level: Level, measure: str, percent: float) -> Percentile:
    return next(p for p in level.measures[measure].percentiles if p.percent == percent)


def _verdict(old: Percentile, new: Percentile) -> str:
    if abs(new.value - old.value) < _FELT_S:
        return ""
    if old.low is not None and new.high is not None and new.high < old.low:
        return "better"
    if old.high is not None and new.low is not None and new.low > old.high:
        return "worse"
    return ""


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield f"{path}: {_short(old)} and {_short(new)}"


def _short(value: Any) -> str:
    shown = str(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
