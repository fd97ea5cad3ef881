"""The finished output: put together from the journal, and there as a whole or not at all."""

from __future__ import annotations

import enum
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.batch_input import BatchInput, split_lines
from cluster.batch_journal import Journal
from cluster.batch_pieces import Layout
from cluster.batch_places import BatchMistake, Place

_JOURNAL = ".journal"

Put = Callable[[Layout, Sequence[Path], Sequence[Path]], None]  # a layout, the journal's segments, the files


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

    def manifest(self, source: BatchInput) -> dict[str, object]:
        """What must be the same when the job is submitted again."""
        files = [[file.path.rsplit("/", 1)[-1], file.size] for file in source.files]
        return {"version": 1, "files": files, "outputs": list(self.names)}

    def exists(self) -> bool:
        """Whether any of it is there."""
        return any(target.exists() for target in self.targets)

    def layout(self, journal: Journal, starts: list[int], num_lines: int) -> Layout:
        """What goes where; `starts` holds the first line of each input file."""
        if self.order is Order.COMPLETED:
            return Layout.of(journal, journal.by_completion(), [0])
        return Layout.of(journal, range(num_lines), starts if self.names else [0])

    def finish(self, layout: Layout, journal: Journal, put: Put) -> None:
        """Have `put` write everything beside its place, then move each file there. Raises OSError."""
        files = [_beside(target, number, journal.folder) for number, target in enumerate(self.targets)]
        for file, size in zip(files, layout.sizes, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as fresh:
                fresh.truncate(size)
        put(layout, journal.segments, files)
        for file, target in zip(files, self.targets, strict=True):
            _move(file, target)

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


def _beside(target: Place, number: int, folder: Path) -> Path:
    """Where a file lies until it is whole: in `folder`, where its place is not on this machine."""
    local = target.local
    return folder / f"output-{number}" if local is None else local.with_name(f".{local.name}.tmp")


def _move(file: Path, target: Place) -> None:
    """There as a whole, or not at all."""
    local = target.local
    if local is not None:
        with file.open("rb") as whole:
            os.fsync(whole.fileno())
        os.replace(file, local)
        _sync_folder(local.parent)
        return
    parent = target.path.rpartition("/")[0]
    if parent:
        target.files.makedirs(parent, exist_ok=True)
    target.files.put_file(str(file), f"{target.path}.tmp")
    target.files.mv(f"{target.path}.tmp", target.path)
    file.unlink()


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
