"""The lines of a batch read by Ray Data: blocks of files in parallel, in order, streaming.

Its rows are the raw lines. What they are is decided in one place, where they are counted: Ray Data's own JSON reader
gives up a whole read for one line that is no JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.data._internal.stats import STATS_ACTOR_NAME, STATS_ACTOR_NAMESPACE, _StatsActor

from cluster.batch_input import BatchInput, Block, block_reader

_READERS = 2  # blocks read at the same time
_COORDINATOR = "AutoscalingCoordinator"  # name and namespace of the actor with which Ray Data asks for machines


class RayReader:
    """Reads one input. Ray must be connected until `stop`."""

    def __init__(self, source: BatchInput) -> None:
        self._source = source
        self._services = _services()

    def rows(self) -> Iterator[tuple[int, bytes | None]]:
        """All lines with the file of each, as `BatchInput.rows`."""
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would draw its own progress into ours
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        blocks = [{"file": block.file, "start": block.start, "end": block.end} for block in self._source.blocks()]
        read = block_reader(self._source)

        def lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
            block = Block(file=row["file"], start=row["start"], end=row["end"])
            for raw in read(block):
                yield {"file": block.file, "raw": raw or b"", "is_long": raw is None}

        # No CPU is asked for: ranks may have taken them all, and a reader that waits for one would wait for ever.
        dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks))
        for row in dataset.flat_map(lines, num_cpus=0, concurrency=_READERS).iter_rows():
            yield int(row["file"]), None if row["is_long"] else bytes(row["raw"])

    def stop(self) -> None:
        """Let go of Ray Data's services; those that are this job's end with it."""
        self._services = ()


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
