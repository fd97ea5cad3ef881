"""A level over time, in bins of equal width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sigmoe.loadtest.document import Timeline
from sigmoe.loadtest.record import UNFINISHED, Record
from sigmoe.loadtest.statistics import percentile

_WIDTHS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_MOST_BINS = 90


def timeline(records: Sequence[Record]) -> Timeline:
    """From the level's beginning to its last answer."""
    end_s = max((record.ended_s for record in records), default=0.0)
    width_s = next((width for width in _WIDTHS if end_s <= width * _MOST_BINS), _WIDTHS[-1])
    num = int(end_s // width_s) + 1
    sent, ended = (
        _counts((r.sent_s for r in records), width_s, num),
        _counts((r.ended_s for r in records), width_s, num),
    )
    firsts: list[list[float]] = [[] for _ in range(num)]
    tokens = [0] * num
    for record in records:
        for at_s, count in record.responses:
            tokens[_bin(at_s, width_s, num)] += count
        if record.ttft_s is not None:
            firsts[_bin(record.responses[0][0], width_s, num)].append(record.ttft_s)
    failed = [record.ended_s for record in records if not record.is_ok and record.code != UNFINISHED]
    return Timeline(
        width_s=width_s,
        sent=sent,
        completed=_counts((record.ended_s for record in records if record.is_ok), width_s, num),
        failed=_counts(failed, width_s, num),
        output_tokens=tuple(tokens),
        in_flight=_running_sum(sent, ended),
        ttft_p50=tuple(_percentile(values, 50.0) for values in firsts),
        ttft_p99=tuple(_percentile(values, 99.0) for values in firsts),
    )


def _bin(at_s: float, width_s: float, num: int) -> int:
    return min(num - 1, max(0, int(at_s // width_s)))


def _counts(times: Iterable[float], width_s: float, num: int) -> tuple[int, ...]:
    found = [0] * num
    for at_s in times:
        found[_bin(at_s, width_s, num)] += 1
    return tuple(found)


def _running_sum(sent: Sequence[int], ended: Sequence[int]) -> tuple[int, ...]:
    level, found = 0, []
    for more, fewer in zip(sent, ended, strict=True):
        level += more - fewer
        found.append(level)
    return tuple(found)


def _percentile(values: list[float], percent: float) -> float | None:
    return percentile(sorted(values), percent) if values else None
