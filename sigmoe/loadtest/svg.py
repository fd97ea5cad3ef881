"""Plots as SVG elements for a page: colours are CSS variables, so that light and dark follow the reader's system."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from sigmoe.loadtest.scale import Format, Scale, plain, scale_of

WIDTH, HEIGHT = 620, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 26, 14, 42
_GLYPH = 6.6  # width of a character of the labels, which keeps them from each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """`low` and `high` are the ends of a confidence interval; `label` is written beside it."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line; `color` is a number from 0 to 5. A point without y is a gap."""

    name: str
    points: Sequence[Point]
    color: int
    has_marks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What the axes mean, and how their numbers are written."""

    x: str
    y: str
    x_format: Format = plain
    y_format: Format = plain
    may_be_log: bool = False
    window: tuple[float, float] | None = None  # shaded behind the lines


def line_chart(title: str, axes: Axes, series: Sequence[Series]) -> str:
    """A figure with its legend."""
    ys = [v for s in series for p in s.points for v in (p.y, p.low, p.high) if v is not None]
    xs = [p.x for s in series for p in s.points]
    x = scale_of(xs, _LEFT, WIDTH - _RIGHT)
    y = scale_of(ys, HEIGHT - _BOTTOM, _TOP, may_be_log=axes.may_be_log)
    parts = [*_window(axes, x), *_grid(axes, x, y)]
    for one in series:
        parts += _line(one, axes, x, y)
    parts += _labels(series, x, y)
    return figure(title, "".join(parts), [(one.name, one.color) for one in series] if len(series) > 1 else [])


def bar_chart(title: str, axes: Axes, edges: Sequence[float], counts: Sequence[int]) -> str:
    """A histogram."""
    low, high = edges[0], edges[-1]
    if not high > low:  # one value alone: a bar of some width around it
        low, high = (low * 0.9, low * 1.1) if low else (0.0, 1.0)
        edges = [low, high]
    x = Scale(low=low, high=high, start=_LEFT, stop=WIDTH - _RIGHT)
    y = scale_of(counts, HEIGHT - _BOTTOM, _TOP)
    bars = []
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        place, width = x.at(left), max(0.5, x.at(right) - x.at(left) - 1)
        tip = f"{axes.x_format(left)} to {axes.x_format(right)}: {count}"
        bars.append(
            f'<rect class="bar" x="{place:.1f}" y="{y.at(count):.1f}" width="{width:.1f}" '
            f'height="{y.at(0) - y.at(count):.1f}"><title>{escape(tip)}</title></rect>'
        )
    return figure(title, "".join([*_grid(axes, x, y), *bars]), [])


def heat_map(title: str, axes: Axes, times: Sequence[float], columns: Sequence[Sequence[float]]) -> str:
    """`columns[t][e]` is a ratio to the even share: 0 is blank, 1 a third of the colour, 3 and more all of it."""
    num_rows = max(map(len, columns))
    # times[0] is the beginning of the first column, times[t + 1] the end of column t
    x = Scale(low=times[0], high=times[-1], start=_LEFT, stop=WIDTH - _RIGHT)
    height = (HEIGHT - _TOP - _BOTTOM) / num_rows
    cells = []
    for (left, right), column in zip(itertools.pairwise(times), columns, strict=True):
        for row, ratio in enumerate(column):
            tip = f"{axes.x_format(left)} to {axes.x_format(right)}, expert {row}: {ratio:.2f}"
            cells.append(
                f'<rect class="cell" x="{x.at(left):.1f}" y="{_TOP + row * height:.2f}" '
                f'width="{x.at(right) - x.at(left) + 0.2:.1f}" height="{height:.2f}" '
                f'fill-opacity="{min(1.0, ratio / 3):.2f}"><title>{escape(tip)}</title></rect>'
            )
    y = Scale(low=0, high=num_rows, start=_TOP, stop=HEIGHT - _BOTTOM)
    frame = (
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{WIDTH - _LEFT - _RIGHT}" '
        f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
    )
    return figure(title, "".join([*cells, frame, *_grid(axes, x, y, has_lines=False)]), [], key=_heat_key())


def figure(title: str, content: str, legend: Sequence[tuple[str, int]], *, key: str = "") -> str:
    """A caption, a legend above the picture, the picture."""
    entries = "".join(f'<span><i class="c{color}"></i>{escape(name)}</span>' for name, color in legend)
    shown = f'<div class="legend">{entries}{key}</div>' if entries or key else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{shown}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{content}</svg></figure>'
    )


def _heat_key() -> str:
    steps = (("0", 0.0), ("even share", 1 / 3), ("2 times", 2 / 3), ("3 times and more", 1.0))
    return "".join(f'<span><i class="heat" style="--o:{opacity:.2f}"></i>{name}</span>' for name, opacity in steps)


def _window(axes: Axes, x: Scale) -> Iterator[str]:
    if axes.window is not None:
        left, right = (x.at(edge) for edge in axes.window)
        yield (
            f'<rect class="window" x="{left:.1f}" y="{_TOP}" width="{max(0.0, right - left):.1f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
        )


def _grid(axes: Axes, x: Scale, y: Scale, *, has_lines: bool = True) -> Iterator[str]:
    bottom = HEIGHT - _BOTTOM
    for tick in y.ticks():
        place = y.at(tick)
        if has_lines:
            yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 7}" y="{place + 4:.1f}" text-anchor="end">{axes.y_format(tick)}</text>'
    for tick in x.ticks():
        place = x.at(tick)
        yield f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text class="tick" x="{place:.1f}" y="{bottom + 17}" text-anchor="middle">{axes.x_format(tick)}</text>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield f'<text class="name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axes.x)}</text>'
    upright = (_TOP + bottom) / 2
    yield (
        f'<text class="name" x="13" y="{upright}" text-anchor="middle" '
        f'transform="rotate(-90 13 {upright})">{escape(axes.y)}</text>'
    )


def _line(series: Series, axes: Axes, x: Scale, y: Scale) -> Iterator[str]:
    runs: list[list[str]] = [[]]
    for point in series.points:
        if point.y is None:
            runs.append([])
        else:
            runs[-1].append(f"{x.at(point.x):.1f},{y.at(point.y):.1f}")
    for run in runs:
        if len(run) > 1:
            yield f'<polyline class="line s{series.color}" points="{" ".join(run)}"/>'
    lone = {run[0] for run in runs if len(run) == 1}
    for point in series.points:
        if point.y is None:
            continue
        px, py = x.at(point.x), y.at(point.y)
        low, high = _bounds(point)
        if low < high:
            yield (
                f'<line class="bound s{series.color}" x1="{px:.1f}" x2="{px:.1f}" '
                f'y1="{y.at(low):.1f}" y2="{y.at(high):.1f}"/>'
            )
        if series.has_marks or f"{px:.1f},{py:.1f}" in lone:
            tip = f"{point.label or series.name}: {axes.x_format(point.x)}, {axes.y_format(point.y)}"
            yield (
                f'<circle class="mark f{series.color}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
                f"<title>{escape(tip)}</title></circle>"
            )


def _bounds(point: Point) -> tuple[float, float]:
    """Of the interval; a side without a bound ends at the point."""
    assert point.y is not None
    return point.y if point.low is None else point.low, point.y if point.high is None else point.high


def _labels(series: Sequence[Series], x: Scale, y: Scale) -> Iterator[str]:
    """Beside their points, each where it meets neither a point nor another label; left out where that fails."""
    marked = [point for one in series if one.has_marks for point in one.points if point.y is not None]
    taken = [
        (x.at(point.x) - 5, y.at(high) - 5, x.at(point.x) + 5, y.at(low) + 5)
        for point in marked
        for low, high in [_bounds(point)]
    ]
    for one in series:
        for point in one.points:
            if not point.label or point.y is None:
                continue
            px, py, width = x.at(point.x), y.at(point.y), _GLYPH * len(point.label)
            beside = ((px + 8, py + 4), (px - 8 - width, py + 4))
            for left, base in (*beside, (px - width / 2, py - 9), (px - width / 2, py + 19)):
                box = (left, base - 11, left + width, base + 3)
                if _is_free(box, taken):
                    taken.append(box)
                    yield f'<text class="label" x="{left:.1f}" y="{base:.1f}">{escape(point.label)}</text>'
                    break


def _is_free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    left, top, right, bottom = box
    if left < _LEFT or right > WIDTH or top < 0 or bottom > HEIGHT - _BOTTOM:
        return False
    return all(right <= a or left >= c or bottom <= b or top >= d for a, b, c, d in taken)
