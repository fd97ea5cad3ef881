"""The finished output: put together from the journal, and there as a whole or not at all."""

from __future__ import annotations

import enum
import hashlib
import json
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.batch_input import BatchInput, split_lines
from cluster.batch_journal import Journal
from cluster.batch_places import BatchMistake, Place

_JOURNAL = ".journal"


class Order(enum.Enum):
    """In which order the output's lines are."""

    INPUT = "input"
    COMPLETED = "completed"


@dataclass(slots=True)
class Census:
    """Which custom_ids there are, whatever their order: their number, and the sum of their digests."""

    num_lines: int = 0
    total: int = 0

    def count(self, custom_id: str | None) -> None:
        """One line more."""
        digest = hashlib.blake2b(json.dumps(custom_id).encode(), digest_size=16).digest()
        self.num_lines += 1
        self.total = (self.total + int.from_bytes(digest)) % 2**128


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutput:
    """What --output names: one file, or a folder with a file for each of the input's."""

    place: Place
    names: tuple[str, ...]  # of the files in the folder, as those of the input; none: one file
    order: Order

    @classmethod
    def of(cls, name: str, source: BatchInput, order: Order) -> BatchOutput:
        """A name that ends in "/" is a folder, and so is a folder. Raises BatchMistake."""
        place = Place.of("--output", name)
        if not name.endswith("/") and not place.files.isdir(place.path):
            return cls(place=place, names=(), order=order)
        if order is Order.COMPLETED:
            raise BatchMistake("--order: completed is for one output file; a folder's are in the order of the input's")
        names = tuple(file.path.rsplit("/", 1)[-1] for file in source.files)
        if len(set(names)) < len(names):
            raise BatchMistake("--output: a folder cannot hold the answers: two input files have the same name")
        plain = tuple(_plain(name) for name in names)
        return cls(place=place, names=plain, order=order)

    @property
    def journal(self) -> Place:
        """Where the checkpoint is."""
        return self.place.beside(_JOURNAL)

    @property
    def targets(self) -> list[Place]:
        """Every file that will be written."""
        return [self.place.inside(name) for name in self.names] if self.names else [self.place]

    def exists(self) -> bool:
        """Whether any of it is there."""
        return any(target.exists() for target in self.targets)

    def finish(self, journal: Journal, starts: list[int], num_lines: int) -> None:
        """Write everything; `starts` holds the first line of each input file."""
        if self.order is Order.COMPLETED:
            _write(self.place, (journal.read(index) for index in journal.by_completion()))
            return
        bounds = [*starts, num_lines] if self.names else [0, num_lines]
        for target, start, end in zip(self.targets, bounds[:-1], bounds[1:], strict=True):
            _write(target, map(journal.read, range(start, end)))

    def lines(self) -> Iterator[dict[str, Any]]:
        """What is there already. Raises BatchMistake where it is no output of a batch."""
        for target in self.targets:
            if not target.exists():
                continue
            with target.files.open(target.path, "rb") as file:
                for raw in split_lines(file, None):
                    try:
                        line = json.loads(raw or b"")
                    except ValueError:
                        line = None
                    if not isinstance(line, dict) or not {"custom_id", "response", "error"} <= line.keys():
                        raise BatchMistake(f"--output: {target.name} exists and is no output of a batch")
                    yield line


def file_of(starts: list[int], index: int) -> int:
    """The file that a line is in, given the first line of each."""
    return bisect_left(starts, index + 1) - 1


def _write(target: Place, lines: Iterable[bytes]) -> None:
    """Beside its place first, then in one move."""
    local = target.local
    if local is not None:
        local.parent.mkdir(parents=True, exist_ok=True)
        fresh = local.with_name(f".{local.name}.tmp")
        _write_file(fresh, lines)
        os.replace(fresh, local)
        _sync_folder(local.parent)
        return
    with tempfile.TemporaryDirectory(prefix="sigmoe-batch-output-") as folder:
        fresh = Path(folder) / "out"
        _write_file(fresh, lines)
        parent = target.path.rpartition("/")[0]
        if parent:
            target.files.makedirs(parent, exist_ok=True)
        target.files.put_file(str(fresh), f"{target.path}.tmp")
        target.files.mv(f"{target.path}.tmp", target.path)


def _write_file(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb", buffering=2**20) as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(name: str) -> str:
    """Answers are not compressed."""
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        name = name.removesuffix(suffix)
    return name
