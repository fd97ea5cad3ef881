"""Composition root of `sigmoe batch`, which `ray job submit` runs: finds or starts who answers, and runs the batch.

The same job serves a terminal without Ray, a cluster's job with a server that runs, and one that brings its own ranks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.batch_format import LineFault, parse_line
from cluster.batch_input import BatchInput, Rows, numbered
from cluster.batch_journal import Journal
from cluster.batch_output import BatchOutput, Census, Order
from cluster.batch_pieces import put_here
from cluster.batch_places import BatchMistake
from cluster.batch_progress import BatchProgress
from cluster.batch_run import BatchRun, Counts, ServerGone
from cluster.batch_server import ServerAnswerer
from cluster.batch_throttle import Throttle
from cluster.config import Config, ray_job
from cluster.deployment import Deployment
from cluster.executor import GroupStartError
from cluster.gateway import CannotListen
from cluster.launch import deployment_of
from cluster.served_model import ServedModel
from model.errors import CheckpointError
from sigmoe import Security

if TYPE_CHECKING:
    from cluster.ray_batch_data import RayData

EXIT_FAILURE, EXIT_USAGE = 1, 2

_MOST = 100_000  # requests under way where nobody names a bound
_FIRST = 16
_SHOW_S = 0.25
_CUSHION = 1.5  # of what the ranks can run: a place that comes free is filled at once


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What the command line says. With `config` the job brings ranks of its own, else `target` answers."""

    input: str
    output: str
    target: str
    config: Config | None
    security: Security | None = None  # of the target
    order: Order = Order.INPUT
    priority: int = -100
    concurrency: int | None = None
    fail_on_error: bool = False
    patience_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The job's last line."""

    event: str
    output: str
    lines: int
    answered: int
    failed: int
    resumed: int  # answered by earlier runs
    seconds: float  # of this run, as all that follows; the start of ranks included
    prompt_tokens: int = 0
    output_tokens: int = 0
    answering_s: float = 0.0
    tokens_per_s: float = 0.0  # while answering
    writing_s: float = 0.0


def run_batch(options: BatchOptions) -> int:
    """Run to the end; returns the exit code: 0 every line has its answer or its error, 1 not, 2 wrong input."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        return asyncio.run(_Job(options).run())
    except BatchMistake as error:
        print(f"sigmoe batch: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (ServerGone, GroupStartError, CannotListen, CheckpointError, OSError) as error:
        print(f"sigmoe batch: {error}; submit it again to go on where it stopped", file=sys.stderr)
        return EXIT_FAILURE


class _Job:
    def __init__(self, options: BatchOptions) -> None:
        self._options = options
        self._console = Console(highlight=False, soft_wrap=True)
        self._source = BatchInput.find(options.input)
        self._output = BatchOutput.of(_lasting(options.output), self._source, options.order)
        self._counts = Counts()
        self._started_s = self._ready_s = time.monotonic()
        self._done_s = self._started_s
        self._writing_s = 0.0
        self._watches: list[asyncio.Task[str]] = []  # over the ranks that are its own
        self._ray_data: RayData | None = None

    async def run(self) -> int:
        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        complete = self._complete()
        if complete is not None:
            return self._end(complete)
        journal = Journal.open(self._output.journal, self._output.manifest(self._source))
        try:
            if journal.num_done:
                torn = f", {journal.num_torn} torn" if journal.num_torn else ""
                self._say(f"going on from {self._output.journal.name}: {journal.num_done:,} lines answered{torn}")
            if not await self._work(journal, stopping):
                self._say(f"stopped with {journal.num_done:,} lines answered; submit it again to go on")
                return EXIT_FAILURE
            journal.remove()
        finally:
            journal.close()
        return self._end(self._summary(journal))

    def _end(self, summary: Summary) -> int:
        """The job's last line and its exit code."""
        print(json.dumps(asdict(summary)), flush=True)
        return EXIT_FAILURE if self._options.fail_on_error and summary.failed else 0

    async def _work(self, journal: Journal, stopping: asyncio.Event) -> bool:
        """Answer and write; False where it was told to stop before all was answered."""
        # Ranks of its own end after the output is written: the connection to Ray goes with them.
        async with AsyncExitStack() as stack:
            work = asyncio.create_task(self._answer(journal, stack))
            stop = asyncio.create_task(stopping.wait())
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
                if work.cancelled():
                    return False
            stop.cancel()
            work.result()
            self._write(journal, stack)
        return True

    async def _answer(self, journal: Journal, stack: AsyncExitStack) -> None:
        """Have every line answered; what `stack` ends may be of use until the job's end."""
        options = self._options
        target, first = options.target, _FIRST
        if options.config is not None:
            deployment = deployment_of(options.config, ServedModel.from_dir(Path(options.config.model.path)).config)
            stack.push_async_callback(deployment.stop, 0.0)
            await self._start(deployment)
            stack.push_async_callback(_cancel, *self._watches)
            target = f"127.0.0.1:{deployment.port}"
            first = int(options.config.cluster.ranks * options.config.engine.max_sequences * _CUSHION)
        answerer = ServerAnswerer(target, options.priority, None if options.config else options.security)
        stack.push_async_callback(answerer.close)
        throttle = Throttle(options.concurrency or _MOST, options.concurrency or first)
        run = BatchRun(answerer, journal, throttle, self._counts, patience_s=options.patience_s)
        work = asyncio.create_task(run.run(numbered(self._rows(stack)), len(self._source.files)))
        stack.push_async_callback(_cancel, work)
        self._ready_s = time.monotonic()
        with BatchProgress(self._console, self._counts, journal, self._source.num_bytes) as progress:
            while not work.done():
                await asyncio.wait([work, *self._watches], timeout=_SHOW_S, return_when=asyncio.FIRST_COMPLETED)
                progress.show()
                for watch in self._watches:
                    if watch.done():
                        raise GroupStartError(f"the ranks were lost too often: {watch.result()}")
        work.result()
        self._done_s = time.monotonic()

    async def _start(self, deployment: Deployment) -> None:
        """Start ranks and gateway, and whoever replaces those that are lost."""
        config = self._options.config
        assert config is not None
        self._say(f"starting {config.cluster.ranks} ranks of its own with {config.model.path}")
        async for step in deployment.start():
            if step.stage == "ready":
                self._say(f"rank {step.rank} is ready")
        self._watches.append(asyncio.create_task(deployment.ended()))

    def _rows(self, stack: AsyncExitStack) -> Rows:
        """Ray Data reads what is more than a block, where there is a Ray."""
        ray_data = self._ray(stack) if len(self._source.blocks()) > 1 else None
        return self._source.rows() if ray_data is None else ray_data.rows(self._source)

    def _write(self, journal: Journal, stack: AsyncExitStack) -> None:
        """Ray Data writes what is more than a piece, where there is a Ray."""
        started_s = time.monotonic()
        layout = self._output.layout(journal, self._counts.starts, self._counts.num_read)
        is_large = len(layout.pieces) > 1
        ray_data = self._ray(stack) if is_large else None
        if is_large:
            by = "" if ray_data is None else ", by Ray Data"
            megabytes = sum(layout.sizes) / 1e6
            self._say(f"writing {self._output.place.name}: {megabytes:,.0f} MB in {len(layout.pieces)} pieces{by}")
        self._output.finish(layout, journal, put_here if ray_data is None else ray_data.put)
        self._writing_s = time.monotonic() - started_s

    def _ray(self, stack: AsyncExitStack) -> RayData | None:
        """The same for reading and writing; None where there is no Ray."""
        if self._ray_data is None and _has_ray():
            from cluster.ray_batch_data import RayData

            self._ray_data = RayData()
            stack.callback(self._ray_data.stop)
        return self._ray_data

    def _complete(self) -> Summary | None:
        """The end of a job whose output is there already. Raises BatchMistake where it is not this input's."""
        if self._output.journal.exists() or not self._output.exists():
            return None
        asked, answered, num_failed = Census(), Census(), 0
        for answer in self._output.lines():
            answered.count(answer.get("custom_id"))
            num_failed += answer.get("error") is not None
        for line in numbered(self._source.rows()):
            asked.count(_id_of(line.raw, line.index + 1))
        if asked != answered:
            raise BatchMistake(
                f"--output: {self._output.place.name} exists and does not answer this input line by line; "
                "remove it, or choose another"
            )
        self._say(f"{self._output.place.name} is complete: {asked.num_lines:,} lines, {num_failed:,} failed")
        return Summary(
            event="batch",
            output=self._output.place.name,
            lines=asked.num_lines,
            answered=asked.num_lines - num_failed,
            failed=num_failed,
            resumed=asked.num_lines,
            seconds=round(time.monotonic() - self._started_s, 3),
        )

    def _say(self, text: str) -> None:
        self._console.print(f"batch  {text}")
        self._console.file.flush()

    def _summary(self, journal: Journal) -> Summary:
        counts, answering_s = self._counts, self._done_s - self._ready_s
        return Summary(
            event="batch",
            output=self._output.place.name,
            lines=counts.num_read,
            answered=journal.num_done - journal.num_failed,
            failed=journal.num_failed,
            resumed=counts.num_resumed,
            prompt_tokens=counts.num_prompt_tokens,
            output_tokens=counts.num_output_tokens,
            seconds=round(time.monotonic() - self._started_s, 3),
            answering_s=round(answering_s, 3),
            tokens_per_s=round(counts.num_output_tokens / max(answering_s, 1e-9), 1),
            writing_s=round(self._writing_s, 3),
        )


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _has_ray() -> bool:
    """Whether this process is connected to a Ray, or, in a job, becomes so."""
    import ray

    if not ray.is_initialized() and ray_job() is not None:
        on_term = signal.getsignal(signal.SIGTERM)
        ray.init(address="auto", log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, on_term)  # Ray puts its own there, which ends the job in the middle of anything
    return bool(ray.is_initialized())


def _lasting(output: str) -> str:
    """A relative path in a Ray job means the user's home: the folder it runs in is a copy, which Ray deletes."""
    if ray_job() is None or "://" in output or Path(output).is_absolute():
        return output
    folder = Path.home() / "sigmoe-batch"
    return f"{folder / output}{'/' if output.endswith('/') else ''}"


def _id_of(raw: bytes | None, number: int) -> str | None:
    try:
        return None if raw is None else parse_line(raw, number).custom_id
    except LineFault as fault:
        return fault.custom_id
