"""How a batch tells how far it is: a bar on a terminal, a line every few seconds in a job's log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cluster.batch_journal import Journal
from cluster.batch_run import Counts

_LINE_S = 5.0  # between two lines of a log
_RATE_S = 30.0  # of the past that a rate is taken over


class BatchProgress:
    """Shows counts and journal; `show` is called as often as anybody likes."""

    def __init__(
        self,
        console: Console,
        counts: Counts,
        journal: Journal,
        num_bytes: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`num_bytes` of the whole input, where it is known, tell how many lines there will be."""
        self._console = console
        self._counts = counts
        self._journal = journal
        self._num_bytes = num_bytes
        self._clock = clock
        self._past = [(clock(), 0, journal.num_done)]  # (time, output tokens, lines)
        self._told_s = clock()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(BarColumn(bar_width=32), TextColumn("{task.description}"), console=console)
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.show(is_last=True)
        if self._bar is not None:
            self._bar.stop()

    def show(self, *, is_last: bool = False) -> None:
        """Bring the bar up to date, or print a line when it is time for one."""
        now_s = self._clock()
        self._past.append((now_s, self._counts.num_output_tokens, self._journal.num_done))
        while len(self._past) > 2 and now_s - self._past[0][0] > _RATE_S:
            self._past.pop(0)
        if self._bar is not None:
            self._bar.update(
                self._task, description=self.line(), completed=self._journal.num_done, total=self.num_lines
            )
        elif is_last or now_s - self._told_s >= _LINE_S:
            self._told_s = now_s
            self._console.print(f"batch  {self.line()}")
            self._console.file.flush()

    @property
    def num_lines(self) -> int | None:
        """Lines of the whole input: counted, or told from what its first bytes held."""
        counts = self._counts
        if counts.is_all_read:
            return counts.num_read
        if not self._num_bytes or not counts.num_bytes:
            return None
        return max(counts.num_read, round(counts.num_read * self._num_bytes / counts.num_bytes))

    def line(self) -> str:
        """Everything in one line."""
        done, num_lines = self._journal.num_done, self.num_lines
        (then_s, tokens_then, lines_then), (now_s, tokens, lines) = self._past[0], self._past[-1]
        elapsed_s = max(now_s - then_s, 1e-9)
        rate = (lines - lines_then) / elapsed_s
        about = "" if self._counts.is_all_read else "about "
        whole = "?" if num_lines is None else f"{about}{num_lines:,}"
        share = f" ({100 * done / num_lines:.1f}%)" if num_lines else ""
        left = f", {_duration((num_lines - done) / rate)} left" if num_lines and rate else ""
        return (
            f"{done:,} of {whole} lines{share}, {self._journal.num_failed:,} failed, "
            f"{(tokens - tokens_then) / elapsed_s:,.0f} tokens/s, {rate:,.1f} lines/s{left}"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
