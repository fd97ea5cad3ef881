"""What a person sees while the ranks start, and once they serve."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.executor import GroupInfo, GroupStatus, LoadProgress


class LoadingView:
    """A bar for each rank on a terminal; elsewhere one line for each new stage of a rank."""

    def __init__(self, console: Console, num_ranks: int, *, is_silent: bool = False) -> None:
        self._console = console
        self._is_silent = is_silent
        self._stages = [""] * num_ranks
        self._progress: Progress | None = None
        self._bars: list[TaskID] = []
        if console.is_terminal and not is_silent:
            self._progress = Progress(
                TextColumn("rank {task.fields[rank]}"),
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=32),
                TextColumn("{task.fields[size]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._bars = [
                self._progress.add_task("waiting", total=None, rank=rank, size="") for rank in range(num_ranks)
            ]

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
        if self._progress is not None:
            is_ready = step.stage == "ready"
            bar = self._bars[step.rank]
            self._progress.update(
                bar,
                description=step.stage,
                total=1 if is_ready else step.total_bytes or None,
                completed=1 if is_ready else step.done_bytes,
            )
            if step.total_bytes:
                self._progress.update(bar, size=readable(step.total_bytes))
        elif not self._is_silent and step.stage != self._stages[step.rank]:
            size = f" {readable(step.total_bytes)}" if step.total_bytes else ""
            self._console.print(f"rank {step.rank}: {step.stage}{size}")
        self._stages[step.rank] = step.stage


def picture(info: GroupInfo, status: GroupStatus, address: str, start_s: float) -> Group:
    """The group that serves: where, who holds what, how much fits."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rank", "device", "pid", "experts", "weights", "KV cache", "kernels"):
        table.add_column(name, no_wrap=True)
    for rank in status.ranks:
        table.add_row(
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
