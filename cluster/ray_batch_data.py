"""A batch's lines read, and its answers written, by Ray Data: blocks of files in parallel, streaming.

The rows that it reads are the raw lines, in order. What they are is decided in one place, where they are counted: Ray
Data's own JSON reader gives up a whole read for one line that is no JSON. The rows that it writes are the journal's
answers, each with its place, so that tasks write into one file at the same time.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import DataContext, Datasink
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.data._internal.stats import STATS_ACTOR_NAME, STATS_ACTOR_NAMESPACE, _StatsActor
from ray.data.block import BlockAccessor
from ray.data.datasource import WriteResult
from ray.exceptions import RayError

from cluster.batch_input import BatchInput, Block, block_reader
from cluster.batch_pieces import Answer, Layout, Piece, answers, put

_TASKS = 2  # blocks read or written at the same time
_COORDINATOR = "AutoscalingCoordinator"  # name and namespace of the actor with which Ray Data asks for machines


class RayData:
    """Reads and writes for one job. Ray must be connected until `stop`."""

    def __init__(self) -> None:
        self._services = _services()
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would draw its own progress into ours
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True

    def rows(self, source: BatchInput) -> Iterator[tuple[int, bytes | None]]:
        """All lines with the file of each, as `BatchInput.rows`."""
        blocks = [{"file": block.file, "start": block.start, "end": block.end} for block in source.blocks()]
        read = block_reader(source)

        def lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
            block = Block(file=row["file"], start=row["start"], end=row["end"])
            for raw in read(block):
                yield {"file": block.file, "raw": raw or b"", "is_long": raw is None}

        # No CPU is asked for: ranks may have taken them all, and a reader that waits for one would wait for ever.
        dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks))
        for row in dataset.flat_map(lines, num_cpus=0, concurrency=_TASKS).iter_rows():
            yield int(row["file"]), None if row["is_long"] else bytes(row["raw"])

    def put(self, layout: Layout, segments: Sequence[Path], files: Sequence[Path]) -> None:
        """Write a layout's answers to their places. Raises OSError."""
        firsts = layout.firsts

        def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
            piece = Piece(
                number=row["number"],
                start=row["start"],
                segments=array("i", row["segments"]),
                offsets=array("q", row["offsets"]),
            )
            for answer in answers(piece, firsts, segments):
                yield answer._asdict()

        # Journal and files are on this machine's disk. For the CPUs see above.
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        options = {"num_cpus": 0, "label_selector": here}
        rows = [_row(piece) for piece in layout.pieces]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        try:
            dataset.flat_map(read, concurrency=_TASKS, **options).write_datasink(
                _Files(files, layout.num_lines), ray_remote_args=options, concurrency=_TASKS
            )
        except RayError as error:
            reason = str(error).rstrip().rpartition("\n")[2]  # below the traceback, which Ray Data has logged
            raise OSError(f"--output: a task could not write it: {reason}") from None

    def stop(self) -> None:
        """Let go of Ray Data's services; those that are this job's end with it."""
        self._services = ()


class _Files(Datasink[None]):  # type: ignore[misc]  # Ray's modules are not looked into
    """Writes answers into files that are there."""

    def __init__(self, files: Sequence[Path], num_lines: int) -> None:
        self._files = files
        self._num_lines = num_lines

    def write(self, blocks: Iterable[Any], ctx: object) -> None:
        """Called in a task with what that has read."""
        rows = (row for block in blocks for row in BlockAccessor.for_block(block).iter_rows(public_row_format=True))
        put((Answer(row["file"], row["start"], row["line"]) for row in rows), self._files)

    def on_write_complete(self, write_result: WriteResult[None]) -> None:
        """Called here, at the end of all tasks: what was not written would be zeros."""
        assert write_result.num_rows == self._num_lines, f"{write_result.num_rows} of {self._num_lines} lines written"


def _row(piece: Piece) -> dict[str, Any]:
    return {
        "number": piece.number,
        "start": piece.start,
        "segments": piece.segments.tobytes(),
        "offsets": piece.offsets.tobytes(),
    }


def _services() -> tuple[Any, ...]:
    """Handles of the actors that Ray Data needs: this job's own, unless the cluster has them already.

    Ray Data takes what it finds under these names, and starts what it does not find as actors that outlive their job.
    Those of a job end with it, also where it is killed. Another job that has come to use them meanwhile starts its own.
    """
    stats = _StatsActor.options(name=STATS_ACTOR_NAME, namespace=STATS_ACTOR_NAMESPACE, get_if_exists=True)
    coordinator = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_AutoscalingCoordinatorActor).options(
        name=_COORDINATOR, namespace=_COORDINATOR, get_if_exists=True
    )
    return stats.remote(), coordinator.remote()
