"""Distributions of lengths in tokens, as users write them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

FORMS = "N, uniform:MIN,MAX, normal:MEAN,SD[,MIN,MAX], lognormal:MEDIAN,SIGMA[,MIN,MAX], exponential:MEAN[,MIN,MAX]"

# name -> number of its own parameters, and how a value is drawn from them
_DRAWS: dict[str, tuple[int, Callable[[random.Random, list[float]], float]]] = {
    "fixed": (1, lambda _, p: p[0]),
    "uniform": (2, lambda rng, p: rng.randint(int(p[0]), int(p[1]))),
    "normal": (2, lambda rng, p: rng.gauss(p[0], p[1])),
    "lognormal": (2, lambda rng, p: p[0] * math.exp(rng.gauss(0.0, p[1]))),
    "exponential": (1, lambda rng, p: rng.expovariate(1 / p[0])),
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """One distribution; draws are whole numbers of at least 1, clipped to the bounds if there are any."""

    text: str
    name: str
    parameters: tuple[float, ...]
    least: int = 1
    most: int | None = None

    @staticmethod
    def parse(text: str, flag: str) -> Lengths:
        """Raises ValueError naming the flag, the value and the forms that are allowed."""
        name, separator, rest = text.strip().partition(":")
        name, rest = (name, rest) if separator else ("fixed", name)
        if name not in _DRAWS or (name == "fixed") == bool(separator):
            raise ValueError(f"{flag}: {text!r} is no distribution of lengths: {FORMS}")
        try:
            numbers = [float(part) for part in rest.split(",")]
        except ValueError:
            raise ValueError(f"{flag}: {text!r}: {rest!r} are no numbers separated by commas: {FORMS}") from None
        wanted = _DRAWS[name][0]
        own, bounds = numbers[:wanted], numbers[wanted:]
        if len(own) < wanted or len(bounds) not in ((0,) if name in ("fixed", "uniform") else (0, 2)):
            raise ValueError(f"{flag}: {text!r}: {len(numbers)} numbers do not fit: {FORMS}")
        _check(own, bounds, f"{flag}: {text!r}", is_range=name == "uniform")
        limits = (int(bounds[0]), int(bounds[1])) if bounds else (1, None)
        return Lengths(text.strip(), name, tuple(own), *limits)

    def draw(self, rng: random.Random) -> int:
        """A length in tokens."""
        value = round(_DRAWS[self.name][1](rng, list(self.parameters)))
        return max(self.least, value if self.most is None else min(value, self.most))


def _check(own: list[float], bounds: list[float], what: str, *, is_range: bool) -> None:
    if not all(math.isfinite(number) for number in (*own, *bounds)):
        raise ValueError(f"{what}: numbers must be finite")
    if own[0] < 1 or min(own) < 0:
        raise ValueError(f"{what}: a length of at least 1 token and no negative spread are allowed")
    for low, high in [tuple(bounds)] * bool(bounds) + [tuple(own)] * is_range:
        if not 1 <= low <= high:
            raise ValueError(f"{what}: bounds {low:g},{high:g} are not 1 <= MIN <= MAX")
