"""A whole run: level after level against one server, and the document that comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

from sigmoe.loadtest import measures, search
from sigmoe.loadtest.arrivals import Arrivals
from sigmoe.loadtest.cautions import cautions
from sigmoe.loadtest.document import Check, ClientLoad, Document, Level
from sigmoe.loadtest.load import Load, Open, Replay, Schedule
from sigmoe.loadtest.plan import Finding, Plan
from sigmoe.loadtest.player import Player, Tally
from sigmoe.loadtest.runner import Run, Runner
from sigmoe.loadtest.sampler import ClientProbe, ServerSampler
from sigmoe.loadtest.tested import Tested, client_facts, server_facts
from sigmoe.loadtest.timeline import timeline


class Watcher(Protocol):
    """Who shows the run to people while it goes on."""

    def begin(self, label: str, schedule: Schedule, tally: Tally) -> None:
        """A level begins; its tally changes while it runs."""
        ...

    def end(self, level: Level) -> None:
        """A level has ended."""
        ...


class Session:
    """Runs a plan; `stop` ends it early, with what has been measured so far."""

    def __init__(self, plan: Plan, tested: Tested, watcher: Watcher, stop: asyncio.Event) -> None:
        self._plan = plan
        self._tested = tested
        self._watcher = watcher
        self._stop = stop
        self._levels: list[Level] = []

    async def run(self) -> Document:
        """All levels, or the search."""
        plan, started = self._plan, datetime.datetime.now(datetime.UTC)
        begun_s = time.perf_counter()
        found = None
        if plan.finding is not None:
            found = search.as_document(plan.finding.objectives, await self._search(plan.finding))
        else:
            for load in plan.loads:
                if not self._stop.is_set():
                    await self._level(load)
        return Document(
            label=plan.label,
            started=started.isoformat(timespec="seconds"),
            elapsed_s=time.perf_counter() - begun_s,
            is_interrupted=self._stop.is_set(),
            client=client_facts(),
            arguments=plan.arguments,
            server=server_facts(self._tested),
            workload=plan.workload.facts(),
            slo=tuple(one.text for one in plan.slo),
            levels=tuple(self._levels),
            search=found,
            checks=tuple(self._checks()),
        )

    async def _search(self, finding: Finding) -> Any:
        shape = next((load.arrivals for load in self._plan.loads if isinstance(load, Open)), Arrivals(rate=1.0))

        async def attempt(rate: float) -> tuple[bool, str] | None:
            level = await self._level(Open(arrivals=dataclasses.replace(shape, rate=rate)))
            return None if level.is_interrupted else search.judge(level, finding.objectives)

        return await search.find_max(attempt, finding.within)

    async def _level(self, load: Load) -> Level:
        plan, loop = self._plan, asyncio.get_running_loop()
        begun_s = loop.time()

        def now() -> float:
            return loop.time() - begun_s

        seed = f"{plan.seed}/{len(self._levels)}"
        player = Player(self._tested.target, now, plan.sampling, seed=plan.seed)
        workload = load.trace if isinstance(load, Replay) else plan.workload
        sampler, probe = ServerSampler(self._tested.look, now, plan.sample_interval_s), ClientProbe()
        self._watcher.begin(load.label, plan.schedule, player.tally)
        async with _beside(probe.run(), *([sampler.run()] if plan.sample_interval_s else [])):
            run = await Runner(player, now, plan.schedule, self._stop).run(load, workload.items(seed), seed)
        level = self._result(load, run, sampler, probe.result())
        self._levels.append(level)
        self._watcher.end(level)
        return level

    def _result(self, load: Load, run: Run, sampler: ServerSampler, client: ClientLoad) -> Level:
        counts, rates = measures.counts(run, self._plan.slo), measures.rates(run, self._plan.slo)
        return Level(
            label=load.label,
            load=load.facts(),
            schedule={key: None if value == math.inf else value for key, value in _fields(self._plan.schedule)},
            start_s=run.start_s,
            end_s=run.end_s,
            is_interrupted=run.is_interrupted,
            counts=counts,
            rates=rates,
            measures=measures.summaries(measures.measured(run)),
            timeline=timeline(run.records),
            server=tuple(sampler.samples),
            client=client,
            warnings=tuple(cautions(counts, rates, client)),
        )

    def _checks(self) -> Iterator[Check]:
        for level in self._levels:
            for one in self._plan.fail_if:
                value = one.value_of(level)
                is_true = value is None or one.holds(value)
                yield Check(expression=one.text, level=level.label, value=value, is_true=is_true)


def _fields(value: Any) -> Sequence[tuple[str, Any]]:
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]


@contextlib.asynccontextmanager
async def _beside(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome
