"""Groups whose ranks run buckets, unrecorded, over the tiny models of `mixed_requests`: as threads, or turn by turn."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any

import torch

from engine.drafters.draft_model import DraftModel
from engine.engine import Engine
from engine.graphs.buckets import Buckets
from engine.graphs.device import HostMark, HostSteps, Mark, StepDevice
from engine.lockstep import GroupStep, Lockstep, StepNeeds
from engine.rank import Rank, RankFacts
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from router.collectives import CollectiveCount
from router.group import GroupDispatcher
from router.placement import Placement
from scheduler.request import DraftMethod, Request, TokenDelta
from scheduler.scheduler import Scheduler
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import Knowing, eagle3_head
from tests.engine.graph_engines import BUCKETS, Overseen, drafting, graph_runner
from tests.engine.mixed_requests import CPU, ROOMY
from tests.engine.worlds import group_locksteps
from tests.router.thread_ranks import on_ranks, thread_groups

SHAPE = "C"
_MOST_TURNS = 200


class LateSteps(HostSteps):
    """A device that does nothing before somebody waits for it: what the host looks at earlier is not there yet."""

    def __init__(self) -> None:
        self.asked: deque[Callable[[], object]] = deque()
        self.num_asked = 0
        self.waits: list[bool] = []  # of each wait that was one, whether more was asked for behind what it waited for

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        return partial(self._ask, run)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._ask(partial(target.copy_, source))

    def mark(self) -> Mark:
        return LateMark(self)

    def _ask(self, run: Callable[[], object]) -> None:
        self.asked.append(run)
        self.num_asked += 1


def late(_: CollectiveCount) -> LateSteps:
    """One of them for a rank."""
    return LateSteps()


class LateMark(HostMark):
    """What was asked for so far is done when it is waited for."""

    def __init__(self, device: LateSteps) -> None:
        super().__init__()
        self._device, self._num_before = device, device.num_asked

    def wait(self) -> None:
        device = self._device
        num_left = device.num_asked - self._num_before
        if len(device.asked) > num_left:
            device.waits.append(num_left > 0)
        while len(device.asked) > num_left:
            device.asked.popleft()()


class Moment(Enum):
    """When something happens to a rank."""

    BEGUN = "when a step was planned, and is launched unless it was already"
    AGREEING = "while it agrees on the step behind the one that runs"
    RUN = "when a step has run, and its results are not taken over yet"
    TURN = "before a turn"


class Events:
    """What is to happen to a rank at the next such moment."""

    def __init__(self) -> None:
        self._acts: dict[Moment, list[Callable[[], None]]] = {moment: [] for moment in Moment}

    def add(self, moment: Moment, act: Callable[[], None]) -> None:
        self._acts[moment].append(act)

    def come(self, *moments: Moment) -> None:
        for moment in moments:
            acts, self._acts[moment] = self._acts[moment], []
            for act in acts:
                act()


class Watched:
    """A lockstep that remembers what was agreed on while a step ran."""

    def __init__(self, inner: Lockstep, is_running: Callable[[], bool], events: Events) -> None:
        self.num_agreements = 0
        self.ahead: list[GroupStep] = []
        self._inner, self._is_running, self._events = inner, is_running, events
        self.sleep, self.ring = inner.sleep, inner.ring

    def agree(self, needs: StepNeeds) -> GroupStep:
        self.num_agreements += 1
        is_ahead = self._is_running()
        if is_ahead:
            self._events.come(Moment.AGREEING)
        agreed = self._inner.agree(needs)
        if is_ahead:
            self.ahead.append(agreed)
        return agreed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The ranks with what they run, watched."""

    ranks: list[Rank]
    engines: list[Engine]
    runners: list[Overseen]
    devices: list[StepDevice]
    locksteps: list[Watched]
    events: list[Events]
    collectives: list[CollectiveCount]

    def turn(self) -> bool:
        """One turn of every rank; False when the group stops."""
        for events in self.events:
            events.come(Moment.TURN)
        going = on_ranks(len(self.ranks), lambda number: self.ranks[number]._turn())
        assert len(set(going)) == 1, f"some ranks stop: {going}"
        return bool(going[0])

    @property
    def has_work(self) -> bool:
        """Whether a turn would be more than a sleep, if only for a step that was launched in vain."""
        is_under_way = any(runner.runner._ahead is not None for runner in self.runners)
        return is_under_way or any(rank._inbox for rank in self.ranks) or any(e.has_work for e in self.engines)

    def told(self) -> list[TokenDelta]:
        """Of all ranks what came out since the last call."""
        return [delta for rank in self.ranks for delta in rank.poll(0.0)]

    def run(self, placed: Iterable[tuple[int, Request]] = ()) -> list[TokenDelta]:
        """Hand each request to its rank and let happen what is left to, then turn to the end."""
        for number, request in placed:
            self.ranks[number].submit(request)
        for events in self.events:
            events.come(*Moment)
        for _ in range(_MOST_TURNS):
            if not self.has_work:
                return self.told()
            self.turn()
        raise AssertionError(f"{_MOST_TURNS} turns, and no end")


def group_of(
    size: int,
    method: DraftMethod = DraftMethod.NONE,
    max_drafts: int = 3,
    *,
    is_ahead: bool = True,
    is_wrong: Callable[[int, int], bool] | None = None,
    buckets: Buckets = BUCKETS,
    steps: Callable[[CollectiveCount], StepDevice] = lambda _: HostSteps(),
    **changes: Any,
) -> Group:
    """Ranks of real models, whose collectives meet as threads of this process.

    `is_wrong` tells which drafts are not what plain decoding yields; without it they are the model's own.
    """
    folder = tiny_checkpoint(SHAPE)
    model_config = ModelConfig.from_dir(folder)
    placement = Placement.even(model_config.num_experts, size)
    groups, locksteps = thread_groups(size), group_locksteps(size)
    config = drafting(ROOMY, method, 0 if method is DraftMethod.NONE else max_drafts)
    config = dataclasses.replace(config, **changes)

    def make(rank: int) -> tuple[Rank, Engine, Overseen, StepDevice, Watched, Events, CollectiveCount]:
        target = Target(dtype=torch.float32, device=CPU, placement=placement, rank=rank)
        dispatcher = GroupDispatcher(placement, rank, groups[rank], CPU)
        model = load_model(folder, model_config, target=target, dispatcher=dispatcher)
        draft_model: DraftModel | None = model.mtp if method is DraftMethod.MTP else None
        if method is DraftMethod.EAGLE3:
            draft_model = eagle3_head(SHAPE)
        if draft_model is not None and is_wrong is not None:
            draft_model = Knowing(draft_model, SHAPE, is_wrong)
        device = steps(dispatcher.collectives)
        runner, _, _ = graph_runner(config, model, draft_model, buckets=buckets, is_alone=False, steps=device)
        events = Events()
        overseen = Overseen(
            runner, lambda plan: events.come(Moment.RUN), lambda: events.come(Moment.BEGUN), is_ahead=is_ahead
        )
        engine = Engine(Scheduler(config, lambda: 0.0), overseen)
        watched = Watched(locksteps[rank], lambda: overseen.is_running, events)
        made = Rank(
            engine,
            watched,
            RankFacts(rank=rank),
            expert_tokens=dispatcher.load.snapshot,
            num_collectives=lambda: dispatcher.collectives.total,
        )
        return made, engine, overseen, device, watched, events, dispatcher.collectives

    made = zip(*on_ranks(size, make), strict=True)
    ranks, engines, runners, devices, watched, events, collectives = map(list, made)
    return Group(
        ranks=ranks,
        engines=engines,
        runners=runners,
        devices=devices,
        locksteps=watched,
        events=events,
        collectives=collectives,
    )
