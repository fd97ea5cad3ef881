"""A rank's side of compiling ahead: begun before the weights are loaded, awaited before the first launch.

Nothing depends on it: what was not compiled ahead is compiled when it is launched. A start that compiled everything
leaves a mark in Triton's cache, by which the next one knows that there is nothing to do. The ranks of a node that share
a cache take turns: the first compiles on all cores, the others find its mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from engine.config import EngineConfig, KernelChoice
from engine.drafters.proposal_sizes import head_folder
from engine.precompile.job import Job, Report
from model.config import ModelConfig
from router.placement import Placement
from scheduler.request import DraftMethod

_log = logging.getLogger(__name__)
_ROOT = Path(__file__).resolve().parent.parent.parent  # where `python -m engine.precompile.process` finds the rooms
_ROOMS = ("kernels", "experts", "router", "model", "engine", "scheduler")  # what says how kernels are launched
_MAX_PROCESSES = 16
_PATIENCE_S = 300.0  # without a word: a kernel takes seconds, on a machine that is busy a minute

OnReport = Callable[[Report], None]


class Ahead:
    """Compiling that goes on in the background."""

    def __init__(self, compile_all: Callable[[OnReport], Report]) -> None:
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        # A daemon: a rank that cannot start need not wait. What was begun then ends by itself, for the next start.
        threading.Thread(target=self._run, args=(compile_all,), name="compile-ahead", daemon=True).start()

    def wait(self, on_progress: Callable[[int, int], None]) -> None:
        """Until all is compiled, with how many kernels are done and how many there are; 0 of 0 before that is known."""
        if self._reports.empty():
            on_progress(0, 0)
        while (report := self._reports.get()) is not None:
            if report.num_done < report.num_all and self._reports.empty():
                on_progress(report.num_done, report.num_all)

    def _run(self, compile_all: Callable[[OnReport], Report]) -> None:
        try:
            compile_all(self._reports.put)
        except Exception:  # whatever it is: the rank compiles what it launches
            _log.warning("event=kernels_not_compiled_ahead", exc_info=True)
        finally:
            self._reports.put(None)


def compile_ahead(config: EngineConfig, device: torch.device) -> Ahead | None:
    """Begin to compile what a rank will launch on a device; None where that is no GPU, or no Triton runs."""
    if device.type != "cuda" or config.kernels is KernelChoice.TORCH:
        return None
    capability = torch.cuda.get_device_capability(device)
    return Ahead(lambda on_report: compile_kernels(config, capability, on_report))


def compile_kernels(
    config: EngineConfig, capability: tuple[int, int], on_report: OnReport, num_processes: int | None = None
) -> Report:
    """Compile what a rank may launch on devices of this compute capability; no device is needed.

    Returns the last report; without kernels where an earlier call compiled all of them.
    """
    import triton  # not at the top: a rank without a GPU has no use for it

    if triton.knobs.runtime.interpret:
        return Report(error="TRITON_INTERPRET is set: the interpreter compiles nothing")
    begin_s = time.monotonic()
    cache_dir = Path(triton.knobs.cache.dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    mark = cache_dir / f"sigmoe-{_digest(config, capability, triton.__version__)}.compiled"
    with _turn(cache_dir / "sigmoe.lock"):
        if mark.exists():
            return Report()
        num_processes = num_processes or min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)
        absolute = replace(config, model_dir=str(Path(config.model_dir).resolve()))  # it starts in another folder
        job = Job(
            config=absolute, capability=capability, cache_dir=str(cache_dir.resolve()), num_processes=num_processes
        )
        last = Report()
        for last in _reports(job):
            on_report(last)
        if last.is_whole:
            mark.touch()
    _tell(last, num_processes, time.monotonic() - begin_s)
    return last


def _tell(report: Report, num_processes: int, seconds: float) -> None:
    if not report.is_whole:
        names = ",".join(report.failed) or "all"
        _log.warning("event=kernels_not_compiled_ahead kernels=%s error=%s", names, report.error or "it ended early")
    _log.info(
        "event=kernels_compiled_ahead kernels=%d in_cache_before=%d seconds=%.1f processes=%d",
        *(report.num_done, report.num_found, seconds, num_processes),
    )


def _reports(job: Job) -> Iterator[Report]:
    """What the process that compiles says, until it ends, however it does."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "engine.precompile.process", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(
            command, cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
    with process, Connection(ours.detach()) as connection:
        try:
            with contextlib.suppress(EOFError, OSError):
                connection.send(job)
                while connection.poll(_PATIENCE_S):
                    yield connection.recv()
        finally:  # with its workers, of which one may hang
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _turn(file: Path) -> Iterator[None]:
    """One rank of a node at a time, where its file system knows locks; else all do the same work."""
    with file.open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(config: EngineConfig, capability: tuple[int, int], triton_version: str) -> str:
    """Of all that says what is launched and how it is compiled; the same on all ranks with as many experts."""
    model = ModelConfig.from_dir(config.model_dir)
    num_local = len(Placement.even(model.num_experts, config.group_size).local_experts(config.rank))
    speculation = replace(config.speculation, draft_dir=None)
    shared = replace(config, model_dir="", device="", rank=0, store=None, epoch=0, speculation=speculation)
    digest = hashlib.sha256(repr((shared, num_local, model, capability, triton_version)).encode())
    if config.speculation.loaded is DraftMethod.EAGLE3:
        digest.update((head_folder(config) / "config.json").read_bytes())
    for file in sorted(file for room in _ROOMS for file in (_ROOT / room).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]
