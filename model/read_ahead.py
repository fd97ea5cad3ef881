"""Tensors of a checkpoint, read by several threads ahead of whoever puts the model together.

taken          ready or being read        not begun
[0, ...............)[........................)[...............  pieces, in the order in which they will be asked for
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
from model.safetensors_files import SafetensorsFiles, StoredTensor

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """How far and how wide to read."""

    num_readers: int  # threads
    piece_bytes: int = 16 * MIB  # of one read at most: a large tensor has several readers
    window_bytes: int  # of tensors that are begun and not taken


def plan_for(device: torch.device) -> ReadPlan:
    """The CPU's own threads pack what was read: see docs/decisions.md. A GPU's host has cores and memory to spare."""
    if device.type == "cuda":
        return ReadPlan(num_readers=8, window_bytes=1024 * MIB)
    return ReadPlan(num_readers=2, window_bytes=128 * MIB)


def landing_for(device: torch.device, plan: ReadPlan) -> Landing:
    """Where what is read goes: into the tensors, or onto the device through two buffers for each reader."""
    if device.type == "cpu":
        return DirectLanding()
    return StagedLanding(device, 2 * plan.num_readers, plan.piece_bytes)


@dataclass(slots=True)
class _Begun:
    tensor: torch.Tensor
    missing: int  # pieces that are not there yet


class ReadAhead:
    """Each tensor of `names` once. A context manager: its end, however it comes, leaves no thread and no copy."""

    def __init__(self, files: SafetensorsFiles, names: Sequence[str], landing: Landing, plan: ReadPlan) -> None:
        self._files = files
        self._landing = landing
        self._plan = plan
        self._pieces = [piece for name in names for piece in self._pieces_of(name)]
        self._last_piece = {name: index for index, (name, _, _) in enumerate(self._pieces)}  # of tensors not taken
        self.total_bytes = sum(files.tensors[name].num_bytes for name in names)
        self._change = threading.Condition()  # over all that follows
        self._next = 0
        self._begun: dict[str, _Begun] = {}
        self._window_bytes = 0
        self._wanted = -1  # last piece of the tensor that somebody waits for
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
        with self._change:
            self._is_over = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        self._landing.close()
        self._begun.clear()

    @property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Where every tensor of the folder lies."""
        return self._files.tensors

    def take(self, name: str) -> torch.Tensor:
        """One tensor, on its device, once it is there. Raises CheckpointError where a file ends too early or fails."""
        assert name in self._last_piece, f"{name}: not promised, or taken already"
        with self._change:
            self._wanted = self._last_piece.pop(name)
            self._change.notify_all()
            self._change.wait_for(lambda: self._error is not None or self._is_there(name))
            if self._error is not None:
                raise self._error
            tensor = self._begun.pop(name).tensor
            self._wanted = -1
            self._window_bytes -= tensor.nbytes
            self._change.notify_all()
        self._landing.hand_over(tensor)
        return tensor

    def _is_there(self, name: str) -> bool:
        return name in self._begun and self._begun[name].missing == 0

    def _pieces_of(self, name: str) -> list[tuple[str, int, int]]:
        size, step = self._files.tensors[name].num_bytes, self._plan.piece_bytes
        return [(name, start, min(start + step, size)) for start in range(0, size, step)] or [(name, 0, 0)]

    def _read(self) -> None:
        """One reader's life."""
        try:
            while (piece := self._claim()) is not None:
                name, start, stop, tensor = piece
                part = tensor.reshape(-1).view(torch.uint8)[start:stop]
                self._landing.write(part, partial(self._files.fill, name, start))
                with self._change:
                    self._begun[name].missing -= 1
                    self._change.notify_all()
        except BaseException as error:  # whatever it is, who waits for the tensor must hear of it
            with self._change:
                self._error = self._error or error
                self._change.notify_all()

    def _claim(self) -> tuple[str, int, int, torch.Tensor] | None:
        """The next piece, with the tensor that it is of; None when there is nothing more to do."""
        with self._change:
            self._change.wait_for(self._may_go_on)
            if self._is_over or self._error is not None or self._next == len(self._pieces):
                return None
            name, start, stop = self._pieces[self._next]
            self._next += 1
            if name not in self._begun:
                stored = self._files.tensors[name]
                tensor = self._landing.allocate(stored.shape, stored.dtype)
                self._begun[name] = _Begun(tensor, len(self._pieces_of(name)))
                self._window_bytes += tensor.nbytes
            return name, start, stop, self._begun[name].tensor

    def _may_go_on(self) -> bool:
        """Whether there is room in the window, or somebody waits for what was not begun, or all is over."""
        is_done = self._is_over or self._error is not None or self._next == len(self._pieces)
        return is_done or self._window_bytes < self._plan.window_bytes or self._next <= self._wanted
