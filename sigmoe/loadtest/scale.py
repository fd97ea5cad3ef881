"""From values to places on paper: scales, ticks at round numbers, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_LOG_FROM = 30.0  # times: values that span so much are drawn on a logarithmic axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values `[low, high]` on places `[start, stop]`."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies; values beyond the ends lie on them."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + (self.stop - self.start) * part

    def ticks(self, most: int = 6) -> list[float]:
        """Round values, ascending."""
        return _log_ticks(self.low, self.high) if self.is_log else _ticks(self.low, self.high, most)


def scale_of(values: Iterable[float], start: float, stop: float, *, may_be_log: bool = False) -> Scale:
    """A scale for values from 0 on; logarithmic where that is wanted, they are positive and span much."""
    found = list(values)
    most = max(found, default=0.0)
    least = min(found, default=0.0)
    if may_be_log and least > 0 and most / least > _LOG_FROM:
        return Scale(
            low=_round_log(least, up=False), high=_round_log(most, up=True), start=start, stop=stop, is_log=True
        )
    ticks = _ticks(0.0, most, 6) if most > 0 else [0.0, 1.0]
    step = ticks[1] - ticks[0]
    high = ticks[-1] if ticks[-1] >= most * (1 - 1e-9) else ticks[-1] + step
    return Scale(low=0.0, high=high, start=start, stop=stop)


def _ticks(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if not span > 0:
        return [low]
    raw = span / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and where these are few 2 and 5 times them."""
    powers = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [m * 10.0**p for p in powers for m in factors]
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _round_log(value: float, *, up: bool) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    steps = [power * m for m in (1, 2, 5, 10)]
    if up:
        return next(step for step in steps if step >= value * (1 - 1e-9))
    return next(step for step in reversed(steps) if step <= value * (1 + 1e-9))


def plain(value: float) -> str:
    """A number in few characters: 1,200 and 0.25."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def round_time(seconds: float) -> str:
    """A time as axes have it: 20 ms, 450 ms, 2.5 s."""
    if abs(seconds) >= 1:
        return f"{seconds:.3g} s" if abs(seconds) < 1000 else f"{seconds:,.0f} s"
    return f"{1000 * seconds:.3g} ms"


def duration(seconds: float) -> str:
    """A time that was measured, with three digits: 17.0 us, 12.3 ms, 450 ms, 2.40 s."""
    if abs(seconds) >= 999.5:
        return f"{seconds:,.0f} s"
    if abs(seconds) >= 0.9995:
        return f"{_three(seconds)} s"
    is_small = 0 < abs(seconds) < 0.9995e-4
    return f"{_three(1e6 * seconds)} us" if is_small else f"{_three(1000 * seconds)} ms"


def _three(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value else "0"


Format = Callable[[float], str]
