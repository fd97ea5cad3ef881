"""The process that compiles: `python -m engine.precompile.process FD`, started by `engine.precompile.ahead`.

FD is this end of a socket pair: a `Job` comes in, a `Report` goes out whenever a kernel is done. A process of its own,
since it makes Triton do without a device, and forks: the workers have Triton and the kernels without importing them.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

import torch
import triton

from engine.precompile.job import Job, Report
from engine.precompile.launches import launch_everything
from kernels.ahead import Outcome, Variant, compile_for, compile_variant, target_of, variants_of


def main(fd: int) -> None:
    """Compile one job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it and its workers, without a word from each
    torch.set_num_threads(1)
    connection = Connection(fd)
    job: Job = connection.recv()
    try:
        for report in _compiled(job):
            connection.send(report)
    except OSError:
        return  # nobody listens any more
    except Exception as error:  # whatever it is must not stop the rank, which compiles what it launches
        connection.send(Report(error=f"{type(error).__name__}: {error}"))


def _compiled(job: Job) -> Iterator[Report]:
    """Compile all that a rank of this configuration may launch."""
    triton.knobs.cache.dir = job.cache_dir
    compile_for(target_of(job.capability))
    variants = variants_of(lambda: launch_everything(job.config))
    report = Report(num_all=len(variants))
    yield report
    for outcome in _outcomes(variants, job.num_processes):
        name = outcome.variant.name
        is_new = bool(outcome.error) and name not in report.failed
        report = Report(
            num_done=report.num_done + 1,
            num_all=report.num_all,
            num_found=report.num_found + int(outcome.was_there),
            failed=(*report.failed, name) if is_new else report.failed,
            error=report.error or outcome.error,
        )
        yield report


def _outcomes(variants: list[Variant], num_processes: int) -> Iterator[Outcome]:
    """As they come. A worker that dies takes with it what is not done yet."""
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("fork")) as pool:
        waiting = {pool.submit(compile_variant, variant): variant for variant in variants}
        for future in as_completed(waiting):
            try:
                yield future.result()
            except BrokenProcessPool as error:
                yield Outcome(variant=waiting[future], error=str(error))


if __name__ == "__main__":
    main(int(sys.argv[1]))
