"""How far a run is, and what follows from it: learning rate, phase, shares of the groups."""

from collections.abc import Mapping
from dataclasses import dataclass

WARMUP, FLAT_UNTIL, FLOOR = 0.01, 0.3, 0.02
FRONT_DOOR_FROM = 0.6  # from here: loss on answers only, mostly our own text

MAIN_SHARES = {"own": 0.20, "talk": 0.04, "chats": 0.14, "short": 0.38, "long": 0.24}
FRONT_SHARES = {"own": 0.36, "talk": 0.12, "chats": 0.24, "short": 0.22, "long": 0.06}


@dataclass(frozen=True, slots=True)
class Budget:
    """When a phase ends: after `seconds` of training time or `steps` steps, whichever comes first."""

    seconds: float
    steps: int | None = None

    def progress(self, *, elapsed_s: float, step: int) -> float:
        """Fraction done, 0 to 1; by the clock, so that a busy machine still ends its decay in time."""
        by_steps = step / self.steps if self.steps else 0.0
        return min(1.0, max(elapsed_s / self.seconds, by_steps))


def learning_rate_scale(progress: float) -> float:
    """Short warm-up, flat, then linear to FLOOR."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.02)
    decayed = max(0.0, progress - FLAT_UNTIL) / (1 - FLAT_UNTIL)
    return 1 - (1 - FLOOR) * decayed


def is_front_door(progress: float) -> bool:
    """Whether the last phase has begun."""
    return progress >= FRONT_DOOR_FROM


def shares(progress: float) -> Mapping[str, float]:
    """Token shares of the groups."""
    return FRONT_SHARES if is_front_door(progress) else MAIN_SHARES
