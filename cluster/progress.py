"""What a person sees while the ranks start, and once they serve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.executor import GroupInfo, GroupStatus, LoadProgress

LINE_EVERY_S = 5.0  # while a rank loads, where there is no terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What a rank is at, and since when."""

    name: str
    begun_s: float
    begun_bytes: int
    next_line_s: float  # when it may be told again


class LoadingView:
    """A bar for each rank on a terminal; elsewhere a line for each new stage, and now and then how far loading is."""

    def __init__(
        self,
        console: Console,
        num_ranks: int,
        num_replicas: int = 1,
        *,
        is_silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`num_ranks` of each replica."""
        self._console = console
        self._clock = clock
        self._is_silent = is_silent
        self._has_replicas = num_replicas > 1
        self._stages: dict[tuple[int, int], _Stage] = {}
        self._progress: Progress | None = None
        self._bars: dict[tuple[int, int], TaskID] = {}
        if console.is_terminal and not is_silent:
            self._progress = Progress(
                TextColumn("{task.fields[name]}"),
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=32),
                TextColumn("{task.fields[size]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._bars = {
                (replica, rank): self._progress.add_task("waiting", total=None, name=self._name(replica, rank), size="")
                for replica in range(num_replicas)
                for rank in range(num_ranks)
            }

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, step: LoadProgress) -> None:
        """One report of a rank."""
        key, now_s = (step.replica, step.rank), self._clock()
        stage = self._stages.get(key)
        if stage is None or stage.name != step.stage:
            stage = _Stage(name=step.stage, begun_s=now_s, begun_bytes=step.done_bytes, next_line_s=now_s)
        if self._progress is not None:
            self._draw(self._progress, self._bars[key], step, _how_far(step, stage, now_s))
        elif not self._is_silent and now_s >= stage.next_line_s:
            self._console.print(f"{self._name(*key)}: {step.stage}{_how_far(step, stage, now_s)}")
            stage = replace(stage, next_line_s=now_s + LINE_EVERY_S if step.total_bytes else math.inf)
        self._stages[key] = stage

    def _draw(self, progress: Progress, bar: TaskID, step: LoadProgress, size: str) -> None:
        is_ready = step.stage == "ready"
        progress.update(
            bar,
            description=step.stage,
            total=1 if is_ready else step.total_bytes or None,
            completed=1 if is_ready else step.done_bytes,
        )
        if step.total_bytes:
            progress.update(bar, size=size.strip())

    def _name(self, replica: int, rank: int) -> str:
        return f"replica {replica} rank {rank}" if self._has_replicas else f"rank {rank}"


def _how_far(step: LoadProgress, stage: _Stage, now_s: float) -> str:
    """` 3.10 of 13.00 GiB, 12 s left`; nothing where a stage has no bytes."""
    if not step.total_bytes:
        return ""
    if step.stage == "compiling":
        return f" {step.done_bytes} of {step.total_bytes} kernels"
    if not step.done_bytes:
        return f" {readable(step.total_bytes)}"
    left_s = ""
    if stage.begun_bytes < step.done_bytes < step.total_bytes:
        pace = (step.done_bytes - stage.begun_bytes) / max(now_s - stage.begun_s, 1e-9)
        left_s = f", {math.ceil((step.total_bytes - step.done_bytes) / pace)} s left"
    return f" {readable(step.done_bytes)} of {readable(step.total_bytes)}{left_s}"


def picture(info: GroupInfo, status: GroupStatus, address: str, start_s: float) -> Group:
    """The group that serves: where, who holds what, how much fits."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    has_replicas = any(rank.replica for rank in status.ranks)
    for name in (
        *(["replica"] if has_replicas else []),
        "rank",
        "device",
        "pid",
        "experts",
        "weights",
        "KV cache",
        "kernels",
    ):
        table.add_column(name, no_wrap=True)
    for rank in status.ranks:
        table.add_row(
            *([str(rank.replica)] if has_replicas else []),
            str(rank.rank),
            rank.device,
            str(rank.pid),
            intervals(rank.experts),
            readable(rank.weight_bytes),
            readable(rank.kv_bytes),
            rank.kernels.removeprefix("native "),
        )
    most = min(info.max_context, info.kv_tokens_per_rank)
    return Group(
        table,
        f"{info.kv_tokens_per_rank:,} tokens of KV cache a rank, requests of up to {most:,} tokens",
        f"ready after {start_s:.1f} s",
        f"serving on {address}  (Ctrl-C stops)",
    )


def intervals(numbers: tuple[int, ...]) -> str:
    """`0-7` for eight ids in a row; gaps are shown by commas."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][-1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def readable(num_bytes: int) -> str:
    """A size for people."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"
