"""What happened to the fleet, in order and readable: every decision about its size, and every replica's life."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

_MAX_EVENTS = 2000  # the oldest are forgotten
_NONE: Mapping[str, float] = {}


class EventKind(enum.Enum):
    """What happened."""

    SCALE = "scale"  # another number of replicas is wanted
    STARTING = "starting"  # a replica looks for its place, then loads
    SERVING = "serving"  # it is warm and takes requests
    START_FAILED = "start_failed"
    CALLED_OFF = "called_off"  # not needed any more before it served
    LOST = "lost"  # a rank of its group is gone; its requests go on elsewhere
    EPOCH = "epoch"  # its next group serves
    GIVEN_UP = "given_up"  # lost too often
    DRAINING = "draining"  # takes no new requests
    DRAINED = "drained"  # has none any more
    REMOVED = "removed"  # its processes and its placement group are gone
    GATEWAY_LOST = "gateway_lost"
    GATEWAY_SERVING = "gateway_serving"  # again


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """One line of the journal."""

    id: int  # ascending from 1
    time_s: float  # since 1970
    kind: EventKind
    replica: int | None = None
    reason: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


class Journal:
    """The last events. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` tells the time of day."""
        self._clock = clock
        self._events: deque[FleetEvent] = deque(maxlen=_MAX_EVENTS)
        self._last_id = 0
        self._news: set[asyncio.Future[None]] = set()
        self._is_closed = False

    def note(
        self, kind: EventKind, reason: str = "", *, replica: int | None = None, numbers: Mapping[str, float] = _NONE
    ) -> None:
        """Write a line."""
        self.copy(
            [
                FleetEvent(
                    id=self._last_id + 1,
                    time_s=self._clock(),
                    kind=kind,
                    replica=replica,
                    reason=reason,
                    numbers=dict(numbers),
                )
            ]
        )

    def copy(self, events: Iterable[FleetEvent]) -> None:
        """Write lines of another journal; those that are here already are left out."""
        for event in events:
            if event.id > self._last_id:
                self._events.append(event)
                self._last_id = event.id
        self._wake()

    def close(self) -> None:
        """Nobody shall wait any longer; what is written can still be read."""
        self._is_closed = True
        self._wake()

    def after(self, last_id: int) -> tuple[FleetEvent, ...]:
        """The lines after this one, as far as they are remembered."""
        return tuple(event for event in self._events if event.id > last_id)

    async def wait(self, last_id: int) -> tuple[FleetEvent, ...]:
        """The lines after this one, at least one; none once the journal is closed."""
        while not (events := self.after(last_id)) and not self._is_closed:
            waiter = asyncio.get_running_loop().create_future()
            self._news.add(waiter)
            try:
                await waiter
            finally:
                self._news.discard(waiter)
        return events

    def _wake(self) -> None:
        for waiter in self._news:
            if not waiter.done():
                waiter.set_result(None)
