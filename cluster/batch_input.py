"""The lines of a batch, in their order, without ever holding more than a piece of a file."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from cluster.batch_places import BatchMistake, Place

MAX_LINE = 16 * 2**20  # bytes; the server takes no larger request
BLOCK_BYTES = 16 * 2**20  # read by one task where Ray Data reads
_CHUNK = 2**20
_SUFFIXES = (".jsonl", ".ndjson", ".json")
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that wants an answer. Lines are counted over all files; blank ones are not."""

    index: int
    file: int
    number: int  # in its file, from 1, blank ones counted
    raw: bytes | None  # None: longer than MAX_LINE

    @property
    def crc(self) -> int:
        """Tells whether it is still the same line."""
        return zlib.crc32(self.raw or b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file; `size` is None where the file system does not say."""

    path: str
    size: int | None

    @property
    def compression(self) -> str | None:
        """By its name, as fsspec calls it."""
        return next((kind for suffix, kind in _COMPRESSED.items() if self.path.endswith(suffix)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The lines that begin at bytes [start, end) of a file; `end` None: all that follow."""

    file: int
    start: int
    end: int | None


Rows = Iterable[tuple[int, bytes | None]]  # (file, line), in order


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """What is behind --input: a file, a folder, a pattern."""

    place: Place
    files: tuple[InputFile, ...]
    is_folder: bool

    @classmethod
    def find(cls, name: str) -> Self:
        """Raises BatchMistake where there is nothing to read."""
        place = Place.of("--input", name)
        try:
            paths, is_folder = _paths(place)
            files = tuple(InputFile(path=path, size=place.files.size(path)) for path in paths)
        except BatchMistake:
            raise
        except Exception as error:  # every file system has errors of its own
            raise BatchMistake(f"--input: {name}: {type(error).__name__}: {error}") from None
        return cls(place=place, files=files, is_folder=is_folder)

    @property
    def num_bytes(self) -> int | None:
        """Of all files, uncompressed; None where it is not known."""
        sizes = [None if file.compression else file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> list[Block]:
        """The input in pieces, in order."""
        blocks = []
        for index, file in enumerate(self.files):
            if file.size is None or file.compression:
                blocks.append(Block(file=index, start=0, end=None))
                continue
            for start in range(0, file.size, block_bytes):
                blocks.append(Block(file=index, start=start, end=min(start + block_bytes, file.size)))
        return blocks

    def rows(self) -> Rows:
        """All lines, read in this process."""
        read = block_reader(self)
        return ((block.file, raw) for block in self.blocks() for raw in read(block))


def numbered(rows: Rows) -> Iterator[Line]:
    """Rows as lines."""
    index, file, number = 0, -1, 0
    for row_file, raw in rows:
        number = 1 if row_file != file else number + 1
        file = row_file
        if raw is None or raw.strip():
            yield Line(index=index, file=file, number=number, raw=raw)
            index += 1


def block_reader(source: BatchInput) -> Callable[[Block], Iterator[bytes | None]]:
    """What reads one block; it may travel to another process."""
    files, entries = source.place.files, source.files

    def read(block: Block) -> Iterator[bytes | None]:
        entry = entries[block.file]
        with files.open(entry.path, "rb", compression=entry.compression) as file:
            if not block.start:
                yield from split_lines(file, block.end)
                return
            # What is left of the line that began before; nothing, if it ended right there.
            file.seek(block.start - 1)
            num_bytes = None if block.end is None else block.end - block.start + 1
            lines = split_lines(file, num_bytes)
            next(lines, None)
            yield from lines

    return read


def split_lines(file: Any, num_bytes: int | None) -> Iterator[bytes | None]:
    """The lines of a file that begin within the next `num_bytes`; None for each that is longer than MAX_LINE."""
    begin, parts, size = 0, list[bytes](), 0
    while chunk := file.read(_CHUNK):
        at = 0
        while (end := chunk.find(b"\n", at)) >= 0:
            yield _joined(parts, size, chunk[at:end])
            begin += size + end - at + 1
            parts, size, at = [], 0, end + 1
            if num_bytes is not None and begin >= num_bytes:
                return
        size += len(chunk) - at
        if size <= MAX_LINE:
            parts.append(chunk[at:])
        else:
            parts.clear()
    if size:
        yield _joined(parts, size, b"")


def _joined(parts: list[bytes], size: int, last: bytes) -> bytes | None:
    if size + len(last) > MAX_LINE:
        return None
    return b"".join((*parts, last)).removesuffix(b"\r")


def _paths(place: Place) -> tuple[list[str], bool]:
    """The files, sorted, and whether they are those of a folder or of a pattern."""
    files, path = place.files, place.path
    if any(sign in place.name for sign in "*[") and not files.exists(path):
        found, is_folder = [entry for entry in files.glob(path) if _is_shown(entry) and files.isfile(entry)], True
    elif files.isfile(path):
        return [path], False
    elif files.isdir(path):
        found, is_folder = [entry for entry in files.find(path) if _is_lines(entry)], True
    else:
        raise BatchMistake(f"--input: {place.name}: no such file or folder")
    if not found:
        raise BatchMistake(f"--input: {place.name}: holds no file of lines ({', '.join(_SUFFIXES)}, compressed or not)")
    return sorted(found), is_folder


def _is_lines(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return name.endswith(_SUFFIXES) and _is_shown(path)


def _is_shown(path: str) -> bool:
    return not path.rsplit("/", 1)[-1].startswith(".")
