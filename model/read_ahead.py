"""Tensors of a checkpoint, read by several threads ahead of whoever puts the model together.

taken          ready or being read        not begun
[0, ...............)[........................)[...............  pieces of runs, in the order of asking
at most `window_bytes`
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import torch

from model.landing import DirectLanding, Landing, StagedLanding
from model.runs import Run, runs_of
from model.safetensors_files import SafetensorsFiles, StoredTensor

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """How far and how wide to read."""

    num_readers: int  # threads
    piece_bytes: int = 16 * MIB  # of one read at most: a large tensor has several readers
    run_bytes: int = 16 * MIB  # of small tensors that are read as one
    window_bytes: int  # of what is begun and not wholly taken


def plan_for(device: torch.device) -> ReadPlan:
    """The CPU's own threads pack what was read: see docs/decisions.md. A GPU's host has cores and memory to spare.

    Of memory in large runs the CPU's allocator keeps more than it gives out again.
    """
    if device.type == "cuda":
        return ReadPlan(num_readers=8, window_bytes=1024 * MIB)
    return ReadPlan(num_readers=2, run_bytes=MIB // 2, window_bytes=128 * MIB)


def landing_for(device: torch.device, plan: ReadPlan) -> Landing:
    """Where what is read goes: into place, or onto the device through two buffers for each reader."""
    if device.type == "cpu":
        return DirectLanding()
    return StagedLanding(device, 2 * plan.num_readers, plan.piece_bytes)


@dataclass(slots=True)
class _Begun:
    memory: torch.Tensor  # [bytes] uint8, of a run
    missing: int  # pieces that are not there yet


class ReadAhead:
    """Each tensor of `names` once. A context manager: its end, however it comes, leaves no thread and no copy.

    A tensor may share its memory with the others of its run (model/runs.py): who keeps it, keeps them.
    """

    def __init__(self, files: SafetensorsFiles, names: Sequence[str], landing: Landing, plan: ReadPlan) -> None:
        self._files = files
        self._landing = landing
        self._plan = plan
        self._runs = runs_of(names, files.tensors, plan.run_bytes)
        self._pieces = [(index, start) for index, run in enumerate(self._runs) for start in self._starts_of(run)]
        self.turn: Mapping[str, int] = {name: turn for turn, name in enumerate(names)}  # when each is read
        self.total_bytes = sum(run.num_bytes for run in self._runs)
        # Of the thread that takes:
        self._not_taken = {name: index for index, run in enumerate(self._runs) for name in run.names}
        self._arrived: dict[int, dict[str, torch.Tensor]] = {}  # tensors of runs that are there, and not taken
        # Of all threads, under the lock:
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # readers wait for it, and wake one another
        self._arrival = threading.Condition(self._lock)
        self._next = 0
        self._begun: dict[int, _Begun] = {}
        self._window_bytes = 0  # of runs that are begun and not wholly taken
        self._wanted = -1  # run that somebody waits for
        self._error: BaseException | None = None
        self._is_over = False
        self._threads = [threading.Thread(target=self._read, name=f"read-{n}") for n in range(plan.num_readers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_over = True
            self._room.notify_all()
        for thread in self._threads:
            thread.join()
        self._begun.clear()
        self._arrived.clear()
        self._landing.close()

    @property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Where every tensor of the folder lies."""
        return self._files.tensors

    def take(self, name: str) -> torch.Tensor:
        """One tensor, on its device, once it is there. Raises CheckpointError where a file ends too early or fails."""
        assert name in self._not_taken, f"{name}: not promised, or taken already"
        index = self._not_taken.pop(name)
        if index not in self._arrived:
            memory = self._await(index)
            self._landing.hand_over(memory)
            self._arrived[index] = self._runs[index].views(memory, self._files.tensors)
        tensors = self._arrived[index]
        tensor = tensors.pop(name)
        if not tensors:
            del self._arrived[index]
            with self._lock:
                self._window_bytes -= self._runs[index].num_bytes
                self._room.notify()
        return tensor

    def _await(self, index: int) -> torch.Tensor:
        """The memory of a run, once it is written."""
        with self._lock:
            self._wanted = index
            self._room.notify()
            self._arrival.wait_for(lambda: self._error is not None or self._is_there(index))
            if self._error is not None:
                raise self._error
            self._wanted = -1
            return self._begun.pop(index).memory

    def _is_there(self, index: int) -> bool:
        return index in self._begun and self._begun[index].missing == 0

    def _starts_of(self, run: Run) -> range:
        return range(0, max(run.num_bytes, 1), self._plan.piece_bytes)

    def _read(self) -> None:
        """One reader's life."""
        try:
            self._landing.enter()
            while self._read_piece():
                pass
        except BaseException as error:  # whatever it is, who waits for the tensor must hear of it
            with self._lock:
                self._error = self._error or error
                self._arrival.notify()
                self._room.notify_all()

    def _read_piece(self) -> bool:
        """Whether there was one left. A reader that waits for room keeps no memory alive: hence not a loop's body."""
        piece = self._claim()
        if piece is None:
            return False
        run, start, begun = piece
        part = begun.memory[start : start + self._plan.piece_bytes]
        self._landing.write(part, partial(self._files.fill, run.file, run.start + start))
        with self._lock:
            begun.missing -= 1
            if begun.missing == 0:
                self._arrival.notify()
        return True

    def _claim(self) -> tuple[Run, int, _Begun] | None:
        """The next piece, with the memory that it is of; None when there is nothing more to do."""
        with self._lock:
            self._room.wait_for(self._may_go_on)
            if self._is_over or self._error is not None or self._next == len(self._pieces):
                self._room.notify()
                return None
            index, start = self._pieces[self._next]
            run = self._runs[index]
            if index not in self._begun:
                self._begun[index] = _Begun(self._landing.allocate(run.num_bytes), len(self._starts_of(run)))
                self._window_bytes += run.num_bytes
            self._next += 1
            if self._may_go_on():
                self._room.notify()  # who makes room wakes one reader, and each the next
            return run, start, self._begun[index]

    def _may_go_on(self) -> bool:
        """Whether there is room in the window, or somebody waits for what was not begun, or all is over."""
        is_done = self._is_over or self._error is not None or self._next == len(self._pieces)
        if is_done or self._window_bytes < self._plan.window_bytes:
            return True
        return self._pieces[self._next][0] <= self._wanted
