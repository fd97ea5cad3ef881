"""What is told while ranks load."""

from __future__ import annotations

import io

from rich.console import Console

from cluster.executor import LoadProgress
from cluster.progress import LINE_EVERY_S, LoadingView

GIB = 2**30


class Told:
    """Lines on something that is no terminal, and a clock that is set by hand."""

    def __init__(self) -> None:
        self._text, self.now_s = io.StringIO(), 100.0
        console = Console(file=self._text, width=200)
        self.view = LoadingView(console, num_ranks=2, clock=lambda: self.now_s)

    def after(self, seconds: float, stage: str, done: int = 0, total: int = 0, rank: int = 0) -> str:
        """What a report so many seconds later adds."""
        self.now_s += seconds
        before = len(self._text.getvalue())
        self.view.show(LoadProgress(rank=rank, stage=stage, done_bytes=done, total_bytes=total))
        return self._text.getvalue()[before:].strip()


def test_bytes_and_seconds_left_are_told_now_and_then() -> None:
    told = Told()
    assert told.after(0, "loading", 1 * GIB, 13 * GIB) == "rank 0: loading 1.00 GiB of 13.00 GiB"
    assert told.after(1, "loading", 2 * GIB, 13 * GIB) == "", "not every report is a line"
    assert told.after(3, "loading", 4 * GIB, 13 * GIB) == ""
    assert told.after(1, "loading", 6 * GIB, 13 * GIB) == "rank 0: loading 6.00 GiB of 13.00 GiB, 7 s left"
    assert told.after(0, "loading", 1 * GIB, 13 * GIB, rank=1) == "rank 1: loading 1.00 GiB of 13.00 GiB"
    assert told.after(LINE_EVERY_S, "loading", 13 * GIB, 13 * GIB) == "rank 0: loading 13.00 GiB of 13.00 GiB"


def test_kernels_are_counted() -> None:
    told = Told()
    assert told.after(0, "compiling", 0, 146) == "rank 0: compiling 0 of 146 kernels"
    assert told.after(LINE_EVERY_S, "compiling", 20, 146) == "rank 0: compiling 20 of 146 kernels"


def test_a_stage_without_bytes_is_told_once() -> None:
    told = Told()
    assert told.after(0, "warming") == "rank 0: warming"
    assert told.after(60, "warming") == ""
    assert told.after(0, "ready") == "rank 0: ready"
