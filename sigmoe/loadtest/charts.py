"""Which plots a result has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from sigmoe.loadtest.document import Level, Percentile, RankSample, ServerSample
from sigmoe.loadtest.scale import plain, round_time
from sigmoe.loadtest.statistics import mean
from sigmoe.loadtest.svg import Axes, Point, Series, bar_chart, heat_map, line_chart

_MOST_CELLS = 6000
_MOST_COLUMNS = 60
_MOST_RANKS = 4  # with a line each; more are drawn as least, mean and most
_HISTOGRAMS = (
    ("ttft", "Time to first token"),
    ("tpot", "Time per output token"),
    ("itl", "Inter-token latency"),
    ("e2e", "End to end"),
)


def overview(levels: Sequence[Level]) -> Iterator[str]:
    """Throughput against latency, a point for each load."""
    for measure, title in (("ttft", "Throughput and time to first token"), ("tpot", "Throughput and time per token")):
        having = [level for level in levels if measure in level.measures]
        having.sort(key=lambda level: level.rates.output_tokens)
        if len(having) > 1:
            axes = Axes(x="output tokens per second", y="latency", y_format=round_time, may_be_log=True)
            series = [
                Series(name=f"p{percent:g}", color=color, has_marks=True, points=_curve(having, measure, percent))
                for color, percent in enumerate((50.0, 99.0))
            ]
            yield line_chart(title, axes, series)


def timelines(level: Level) -> Iterator[str]:
    """What the client saw over time; the measured window is shaded."""
    line = level.timeline
    window = (level.start_s, level.end_s)
    xs = [(i + 0.5) * line.width_s for i in range(len(line.sent))]

    def per_s(counts: Sequence[int]) -> list[Point]:
        return [Point(x=x, y=count / line.width_s) for x, count in zip(xs, counts, strict=True)]

    def plotted(values: Sequence[float | None]) -> list[Point]:
        return [Point(x=x, y=value) for x, value in zip(xs, values, strict=True)]

    requests = [
        Series(name="sent", color=0, points=per_s(line.sent)),
        Series(name="answered", color=2, points=per_s(line.completed)),
    ]
    if any(line.failed):
        requests.append(Series(name="failed", color=1, points=per_s(line.failed)))
    yield line_chart("Requests per second", Axes(x="seconds", y="requests/s", window=window), requests)
    tokens = [Series(name="tokens", color=0, points=per_s(line.output_tokens))]
    yield line_chart("Output tokens per second", Axes(x="seconds", y="tokens/s", window=window), tokens)
    first = [
        Series(name="p50", color=0, points=plotted(line.ttft_p50)),
        Series(name="p99", color=1, points=plotted(line.ttft_p99)),
    ]
    axes = Axes(x="seconds", y="latency", y_format=round_time, may_be_log=True, window=window)
    yield line_chart("Time to first token, by when it came", axes, first)
    under_way = [Series(name="under way", color=0, points=plotted(line.in_flight))]
    yield line_chart("Requests under way", Axes(x="seconds", y="requests", window=window), under_way)


def histograms(level: Level) -> Iterator[str]:
    """How latencies are distributed."""
    for measure, title in _HISTOGRAMS:
        if measure in level.measures:
            summary = level.measures[measure]
            unit = "gaps" if measure == "itl" else "requests"
            axes = Axes(x="latency", y=unit, x_format=round_time)
            yield bar_chart(f"{title}: {summary.count:,} {unit}", axes, summary.edges, summary.counts)


def server(level: Level) -> Iterator[str]:
    """KV cache, queue and experts, as far as the server told."""
    samples = level.server
    if not any(sample.ranks for sample in samples):
        return
    window = (level.start_s, level.end_s)
    kv = Axes(x="seconds", y="share of blocks", y_format=lambda v: f"{100 * v:.3g}%", window=window)
    yield line_chart("KV cache in use", kv, _by_rank(samples, lambda rank: rank.kv_used))
    queue = [
        Series(name="running", color=0, points=_summed(samples, lambda rank: rank.running)),
        Series(name="waiting", color=1, points=_summed(samples, lambda rank: rank.waiting)),
    ]
    yield line_chart("Sequences on the server", Axes(x="seconds", y="sequences", window=window), queue)
    yield from _experts(samples)


def _curve(levels: Sequence[Level], measure: str, percent: float) -> list[Point]:
    points = []
    for level in levels:
        found = _percentile(level, measure, percent)
        load = level.load
        label = f"{load['concurrency']}" if load["kind"] == "closed" else f"{plain(load.get('rate', 0))}/s"
        points.append(
            Point(
                x=level.rates.output_tokens,
                y=found.value,
                low=found.low,
                high=found.high,
                label=label if percent == 50 else "",
            )
        )
    return points


def _percentile(level: Level, measure: str, percent: float) -> Percentile:
    return next(p for p in level.measures[measure].percentiles if p.percent == percent)


def _summed(samples: Sequence[ServerSample], value: Callable[[RankSample], float]) -> list[Point]:
    return [Point(x=sample.at_s, y=sum(value(rank) for rank in sample.ranks)) for sample in samples]


def _by_rank(samples: Sequence[ServerSample], value: Callable[[RankSample], float]) -> list[Series]:
    ranks = sorted({rank.key for sample in samples for rank in sample.ranks})
    has_replicas = any(replica for replica, _ in ranks)
    if len(ranks) <= _MOST_RANKS:
        return [
            Series(
                name=f"replica {replica}, rank {number}" if has_replicas else f"rank {number}",
                color=color,
                points=[
                    Point(x=sample.at_s, y=value(rank))
                    for sample in samples
                    for rank in sample.ranks
                    if rank.key == (replica, number)
                ],
            )
            for color, (replica, number) in enumerate(ranks)
        ]
    found = [(sample.at_s, [value(rank) for rank in sample.ranks]) for sample in samples if sample.ranks]
    joins: tuple[tuple[str, Callable[[list[float]], float]], ...] = (("most", max), ("mean", mean), ("least", min))
    return [
        Series(name=name, color=color, points=[Point(x=at_s, y=join(values)) for at_s, values in found])
        for color, (name, join) in enumerate(joins)
    ]


def _experts(samples: Sequence[ServerSample]) -> Iterator[str]:
    """Each column is the time between two looks, or several where they are many; blank where no rows were routed."""
    spans = [(a.at_s, b.at_s, b.expert_tokens) for a, b in itertools.pairwise(samples) if b.expert_tokens]
    num_experts = max((len(rows) for _, _, rows in spans), default=0)
    if not num_experts:
        return
    per_column = -(-len(spans) // max(1, min(_MOST_COLUMNS, _MOST_CELLS // num_experts)))
    times, columns = [spans[0][0]], []
    for start in range(0, len(spans), per_column):
        part = spans[start : start + per_column]
        totals = [sum(rows[e] for _, _, rows in part if e < len(rows)) for e in range(num_experts)]
        mean = sum(totals) / num_experts
        times.append(part[-1][1])
        columns.append([total / mean if mean else 0.0 for total in totals])
    axes = Axes(x="seconds", y="expert")
    yield heat_map("Rows by expert, over all MoE layers and ranks", axes, times, columns)
