"""Runs: tensors that lie back to back in one file and are wanted soon after each other, so that one read has them all.

The file      | a | b | c | d | e |
wanted          a   b       d   e       two runs: [a, b], [d, e]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from model.safetensors_files import StoredTensor

_NEAR = 4  # runs' worth of other tensors between the first of a run and its last
_FAR_SHARE = 16  # what is wanted far from its neighbours is read with them if it is so much less than a run


@dataclass(slots=True)
class Run:
    """Where tensors lie, in that order."""

    file: Path
    start: int  # byte of the file
    turn: int  # bytes that are wanted before
    names: list[str] = field(default_factory=list)
    num_bytes: int = 0

    def views(self, memory: torch.Tensor, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
        """The tensors in `memory` [bytes] uint8, which holds what the file does."""
        parts = memory.split_with_sizes([stored[name].num_bytes for name in self.names])
        return {
            name: part.view(stored[name].dtype).view(stored[name].shape)
            for name, part in zip(self.names, parts, strict=True)
        }


def runs_of(names: Sequence[str], stored: Mapping[str, StoredTensor], most_bytes: int) -> list[Run]:
    """Each name in one run of `most_bytes` or of a single tensor, in the order in which their first tensors are wanted.

    A run holds no byte of what is not wanted. The scales of a layer lie together, their weights are wanted one expert
    after the other: such a run may be a small one only, for it is kept in memory until the last is wanted.
    """
    found: list[Run] = []
    growing: dict[tuple[Path, int], Run] = {}  # by where they end
    turn = 0
    for name in names:
        tensor = stored[name]
        run = growing.pop((tensor.file, tensor.offset), None)
        if run is None or not _fits(run, tensor, turn, most_bytes):
            run = Run(tensor.file, tensor.offset, turn)
            found.append(run)
        run.names.append(name)
        run.num_bytes += tensor.num_bytes
        growing[tensor.file, tensor.offset + tensor.num_bytes] = run
        turn += tensor.num_bytes
    return found


def _fits(run: Run, tensor: StoredTensor, turn: int, most_bytes: int) -> bool:
    """Whether a tensor that follows in the file is to be of the run, where numbers begin as their dtype asks."""
    limit = most_bytes if turn - run.turn <= _NEAR * most_bytes else most_bytes // _FAR_SHARE
    return run.num_bytes + tensor.num_bytes <= limit and run.num_bytes % tensor.dtype.itemsize == 0
