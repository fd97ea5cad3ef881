"""Objectives as users write them: `ttft_p99 < 500ms` over a level, `ttft < 500ms` over one request."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from sigmoe.loadtest.document import Level
from sigmoe.loadtest.record import Record
from sigmoe.loadtest.scale import duration, plain
from sigmoe.loadtest.statistics import PERCENTILES

_FORM = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([A-Za-zµ%/]*)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0}
_RATIO = {"": 1.0, "%": 0.01}
_PLAIN = {"": 1.0, "/s": 1.0}

TIMES = ("ttft", "itl", "tpot", "e2e", "queue", "prefill", "send_lag")
TOKENS = ("input_tokens", "output_tokens")
STATISTICS = ("mean", "min", "max", *(f"p{percent:g}" for percent in PERCENTILES))
_RATES: dict[str, tuple[dict[str, float], Callable[[Level], float | None]]] = {
    "requests_per_s": (_PLAIN, lambda level: level.rates.completed),
    "output_tokens_per_s": (_PLAIN, lambda level: level.rates.output_tokens),
    "input_tokens_per_s": (_PLAIN, lambda level: level.rates.input_tokens),
    "goodput": (_PLAIN, lambda level: level.rates.goodput),
    "error_rate": (_RATIO, lambda level: level.rates.error_ratio),
    "tokens_per_verify": (_PLAIN, lambda level: level.rates.tokens_per_verify),
    "cached": (_RATIO, lambda level: level.rates.cached_ratio),
}
_OF_REQUEST: dict[str, Callable[[Record], float | None]] = {
    "ttft": lambda record: record.ttft_s,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.e2e_s,
    "itl": lambda record: max(record.gaps_s, default=None),
    "queue": lambda record: None if record.usage is None else record.usage.queue_s,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """`name` compared with `bound`, which is in seconds, a ratio or a plain number."""

    text: str
    name: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether it is true of a value."""
        return _COMPARE[self.sign](value, self.bound)

    def shown(self, value: float | None) -> str:
        """A value of it as people write it."""
        if value is None:
            return "nothing was measured"
        if self.name in _RATES:
            return f"{100 * value:.3g}%" if _RATES[self.name][0] is _RATIO else plain(value)
        return duration(value) if self.name.rpartition("_")[0] in TIMES else plain(value)

    def value_of(self, level: Level) -> float | None:
        """What a level measured under this name; None where it measured nothing."""
        if self.name in _RATES:
            return _RATES[self.name][1](level)
        measure, _, statistic = self.name.rpartition("_")
        summary = level.measures.get(measure)
        if summary is None:
            return None
        if statistic.startswith("p"):
            return next(p.value for p in summary.percentiles if p.percent == float(statistic[1:]))
        return {"mean": summary.mean, "min": summary.least, "max": summary.most}[statistic]

    def is_met_by(self, record: Record) -> bool:
        """Whether a request kept it; what it has no value for, as a one-token answer has no TPOT, it keeps."""
        value = _OF_REQUEST[self.name](record)
        return value is None or self.holds(value)


def level_expression(text: str, flag: str) -> Expression:
    """Of a level. Raises ValueError naming the flag, the text and what is allowed."""
    name, sign, number, unit = _parts(text, flag, "ttft_p99 > 500ms")
    if name in _RATES:
        return _expression(text, flag, (name, sign, number, unit), _RATES[name][0])
    measure, _, statistic = name.rpartition("_")
    statistic = "p99.9" if statistic == "p999" else statistic
    if measure not in (*TIMES, *TOKENS) or statistic not in STATISTICS:
        raise ValueError(
            f"{flag}: {text!r}: {name} is nothing that is measured: {', '.join((*TIMES, *TOKENS))} with "
            f"_{', _'.join(STATISTICS)}; and {', '.join(_RATES)}"
        )
    units = _SECONDS if measure in TIMES else _PLAIN
    return _expression(text, flag, (f"{measure}_{statistic}", sign, number, unit), units)


def request_expression(text: str, flag: str) -> Expression:
    """Of one request, for goodput. Raises ValueError as above."""
    name, sign, number, unit = _parts(text, flag, "ttft < 500ms")
    if name not in _OF_REQUEST:
        raise ValueError(f"{flag}: {text!r}: {name} is nothing that a request has: {', '.join(_OF_REQUEST)}")
    return _expression(text, flag, (name, sign, number, unit), _SECONDS)


def _parts(text: str, flag: str, example: str) -> tuple[str, str, str, str]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{flag}: {text!r} is not of the form {example!r}")
    name, sign, number, unit = match.groups()
    return name, sign, number, unit


def _expression(text: str, flag: str, parts: tuple[str, str, str, str], units: dict[str, float]) -> Expression:
    name, sign, number, unit = parts
    if unit not in units:
        allowed = ", ".join(unit for unit in units if unit) or "none"
        raise ValueError(f"{flag}: {text!r}: unit {unit or 'missing'}: {name} takes {allowed}")
    try:
        bound = float(number) * units[unit]
    except ValueError:
        raise ValueError(f"{flag}: {text!r}: {number!r} is no number") from None
    return Expression(text=text.strip(), name=name, sign=sign, bound=bound)
