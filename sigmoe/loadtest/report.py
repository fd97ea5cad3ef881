"""The HTML report: one file, no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib import resources
from typing import Any

from sigmoe.loadtest import charts
from sigmoe.loadtest.document import Document, Level, Percentile, Summary
from sigmoe.loadtest.expressions import level_expression
from sigmoe.loadtest.scale import Format, duration, plain

Cell = str | tuple[str, str]  # the second is small print below the first

_TITLES = {
    "ttft": "time to first token",
    "itl": "inter-token latency",
    "tpot": "time per output token",
    "e2e": "end to end",
    "queue": "queue, as the server says",
    "prefill": "prefill, as the server says",
    "send_lag": "lateness of the load test",
    "input_tokens": "prompt tokens",
    "output_tokens": "output tokens",
}


def render(document: Document) -> str:
    """The whole page, well-formed as XML, too."""
    title = document.label or f"Load test of {document.server.model.get('name') or document.server.address}"
    style = resources.files("sigmoe.loadtest").joinpath("report.css").read_text(encoding="utf-8")
    body = [
        f"<h1>{escape(title)}</h1>",
        *_heading(document),
        *_verdicts(document),
        "<h2>Loads</h2>",
        _loads(document),
        _grid(charts.overview(document.levels)),
        *(_level(level, is_open=level is document.levels[-1]) for level in document.levels),
        "<h2>Settings</h2>",
        *_settings(document),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def _heading(document: Document) -> Iterator[str]:
    server, workload = document.server, document.workload
    parts = [
        document.started.replace("T", " ").replace("+00:00", " UTC"),
        f"{server.model.get('name', '')} at {server.address}, sigmoe {server.version}",
        f"{len(server.ranks)} ranks" if len(server.ranks) != 1 else "1 rank",
        f"workload {workload.get('name', '')}",
    ]
    yield f'<p class="facts">{escape(" · ".join(parts))}</p>'
    if document.is_interrupted:
        yield '<p class="caution">Interrupted: this is what was measured until then.</p>'


def _verdicts(document: Document) -> Iterator[str]:
    if document.search is not None:
        found = document.search
        goals = " and ".join(found.objectives)
        if found.best_rate is None:
            yield f'<p class="caution">No rate kept {escape(goals)}.</p>'
        else:
            bound = "" if found.is_bounded else "; nothing above it was tried"
            yield (
                f"<p><strong>{found.best_rate:g} requests/s</strong> is the highest rate that keeps "
                f"{escape(goals)}{bound}.</p>"
            )
        rows = [(f"{t.rate:g}/s", "kept" if t.is_kept else f"not kept: {t.why}") for t in found.trials]
        yield _table(("rate", "objectives"), rows, kind="words")
    for check in document.checks:
        value = level_expression(check.expression, "--fail-if").shown(check.value)
        mark = "caution" if check.is_true else "fine"
        text = f"fail if {check.expression}: {'true' if check.is_true else 'not true'} at {check.level} ({value})"
        yield f'<p class="{mark}">{escape(text)}</p>'


def _loads(document: Document) -> str:
    names = ["load", "answered", "failed", "requests/s", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99"]
    names += ["end to end p50", "p99"] + (["goodput/s"] if document.slo else [])
    rows = []
    for level in document.levels:
        counts, rates = level.counts, level.rates
        row = [
            level.label,
            f"{counts.ok} of {counts.measured}",
            str(sum(counts.failed.values()) + counts.unfinished),
            plain(rates.completed),
            plain(rates.output_tokens),
        ]
        for measure in ("ttft", "tpot", "e2e"):
            row += [_value(level.measures.get(measure), percent) for percent in (50.0, 99.0)]
        rows.append(row + ([plain(rates.goodput or 0.0)] if document.slo else []))
    return _table(names, rows)


def _level(level: Level, *, is_open: bool) -> str:
    parts = [f"<summary>{escape(level.label)}</summary>"]
    parts += [f'<p class="caution">{escape(text)}</p>' for text in level.warnings]
    parts.append(f"<p>{escape(_endings(level))}</p>")
    for code, text in level.counts.examples.items():
        parts.append(f'<p class="facts">{escape(code)}, for instance: {escape(text)}</p>')
    parts.append(_percentiles(level))
    parts.append(_table(("measure", "value"), list(_figures(level))))
    parts.append(_grid(charts.timelines(level)))
    parts.append(_grid(charts.server(level)))
    parts.append(_grid(charts.histograms(level)))
    return "\n".join(['<details open="open">' if is_open else "<details>", *parts, "</details>"])


def _endings(level: Level) -> str:
    counts = level.counts
    failed = sum(counts.failed.values())
    codes = f" ({', '.join(f'{count} {code}' for code, count in counts.failed.items())})" if failed else ""
    return (
        f"{counts.measured} requests were meant to be sent within the {level.rates.window_s:.1f} s measured: "
        f"{counts.ok} were answered, {failed or 'none'} failed{codes}, {counts.unfinished or 'none'} had to be ended "
        f"by the load test. {counts.outside} others lay outside of it (ramp, warm-up, later turns)."
    )


def _percentiles(level: Level) -> str:
    first = next(iter(level.measures.values()), None)
    if first is None:
        return ""
    names = ["", "count", "mean", *(f"p{p.percent:g}" for p in first.percentiles), "most"]
    rows = []
    for measure, summary in level.measures.items():
        write = plain if measure.endswith("tokens") else duration
        cells = [(write(p.value), _interval(p, write)) for p in summary.percentiles]
        row: list[Cell] = [_TITLES[measure], f"{summary.count:,}", write(summary.mean), *cells, write(summary.most)]
        rows.append(row)
    return _table(names, rows) + '<p class="facts">In small print: 95% confidence intervals from order statistics.</p>'


def _interval(p: Percentile, write: Format) -> str:
    low = "?" if p.low is None else write(p.low)
    high = "?" if p.high is None else write(p.high)
    unit = write(p.value).partition(" ")[2]
    if unit and {text.partition(" ")[2] for text in (low, high) if text != "?"} <= {unit}:
        return f"{low.partition(' ')[0]} to {high.partition(' ')[0]}"  # the unit stands above it
    return f"{low} to {high}"


def _figures(level: Level) -> Iterator[tuple[str, str]]:
    rates, client = level.rates, level.client
    yield "requests meant per second", plain(rates.offered)
    yield "requests answered per second", plain(rates.completed)
    yield "output tokens per second", plain(rates.output_tokens)
    yield "prompt tokens per second", plain(rates.input_tokens)
    if rates.goodput is not None and level.counts.met_slo is not None:
        yield "goodput", f"{plain(rates.goodput)}/s ({level.counts.met_slo} of {level.counts.measured} requests)"
    if rates.tokens_per_verify is not None:
        yield "tokens per verify", f"{rates.tokens_per_verify:.2f}"
    if rates.tokens_per_response is not None:
        yield "tokens per response", f"{rates.tokens_per_response:.2f}"
    if rates.cached_ratio is not None:
        yield "prompt tokens from the prefix cache", f"{100 * rates.cached_ratio:.1f}%"
    yield "load test: share of one core", f"{100 * client.cpu_share:.0f}%"
    yield (
        "load test: event loop late, p50 and p99",
        (f"{duration(client.loop_lag_p50_s)}, {duration(client.loop_lag_p99_s)}"),
    )


def _settings(document: Document) -> Iterator[str]:
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("Workload", document.workload),
        ("Arguments", document.arguments),
        ("Model", document.server.model),
        ("Server configuration", document.server.configuration),
        *((f"Replica {rank.get('replica', 0)}, rank {rank.get('rank')}", rank) for rank in document.server.ranks),
        ("Load test ran on", document.client),
    )
    for title, values in tables:
        if values:
            table = _table(("key", "value"), list(_flat(values)), kind="keys")
            yield f"<details><summary>{escape(title)}</summary>{table}</details>"


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{path}{key}", shown


def _value(summary: Summary | None, percent: float) -> str:
    return "-" if summary is None else duration(next(p.value for p in summary.percentiles if p.percent == percent))


def _grid(figures: Iterable[str]) -> str:
    shown = "".join(figures)
    return f'<div class="figures">{shown}</div>' if shown else ""


def _table(names: Iterable[str], rows: Iterable[Iterable[Cell]], kind: str = "numbers") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ["<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def _cell(cell: Cell) -> str:
    text, small = (cell, "") if isinstance(cell, str) else cell
    return escape(text) + (f"<small>{escape(small)}</small>" if small else "")
