"""The checkpoint of a batch: every answer as it comes, durable before it counts.

A folder beside the output. Each run appends to segments of its own:

    000001.jsonl    crc32 of the rest, place of the line, a (answer) or e (error), crc32 of the input line, output line
    manifest.json   what the input was

A line that a violent end tore, or that never reached the disk, fails its sum and counts as not answered. Where the
output is not on this machine the folder is kept in a temporary one here, and each segment is sent when it is full.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import psutil

from cluster.batch_places import BatchMistake, Place

_MANIFEST, _LOCK = "manifest.json", "lock"
_SEGMENT_BYTES = 256 * 2**20
_NONE = -1
_MOST_OPEN = 64  # segments being read: a long run with a distant journal leaves more of them than a process may open
_PREFIX = "sigmoe-batch-"  # of a temporary folder; the process id comes next


class SegmentReader:
    """Reads answers from segments of a journal, here or in another process."""

    def __init__(self, segments: Sequence[Path]) -> None:
        self._segments = segments
        self._files: dict[int, IO[bytes]] = {}

    def read(self, segment: int, offset: int) -> bytes:
        """The output line of the answer that begins there, with its end."""
        file = self._files.get(segment)
        if file is None:
            if len(self._files) >= _MOST_OPEN:
                self._files.pop(next(iter(self._files))).close()  # the first one opened
            file = self._files[segment] = self._segments[segment].open("rb")
        file.seek(offset)
        line = file.readline()
        rest = line[9:-1]
        assert int(line[:8], 16) == zlib.crc32(rest), f"{self._segments[segment]} changed on disk at byte {offset}"
        return rest.split(b"\t", 3)[3] + b"\n"

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class Journal:
    """Which lines are answered, and their answers. 24 bytes of memory a line; the rest stays on disk."""

    def __init__(self, place: Place, folder: Path, lock: IO[bytes] | None) -> None:
        self.num_torn = 0  # lines of earlier runs that did not survive
        self.num_done = 0
        self.num_failed = 0  # of these
        self.folder = folder  # on this machine
        self.segments: list[Path] = []
        self._place = place
        self._lock = lock
        self._segment_of = array("i")  # by line; _NONE: not answered
        self._offset_of = array("q")
        self._size_of = array("I")  # of the output line
        self._crc_of = array("I")
        self._file: IO[bytes] | None = None  # the segment being written
        self._size = 0  # of it
        self._reader = SegmentReader(self.segments)

    @classmethod
    def open(cls, place: Place, manifest: dict[str, Any]) -> Self:
        """Take up what earlier runs left. Raises BatchMistake for another input's journal, or one that is in use."""
        local, lock = place.local, None
        folder = local if local is not None else _temporary()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(_gone(folder), ignore_errors=True)  # of a job that was killed at its very end
            if local is not None:
                lock = _locked(folder, place)
            else:
                _fetch(place, folder)
            _check_manifest(folder, place, manifest)
        except (OSError, BatchMistake) as error:
            if lock is not None:
                lock.close()
            if isinstance(error, BatchMistake):
                raise
            raise BatchMistake(f"{place.flag}: {place.name}: {error}") from None
        journal = cls(place, folder, lock)
        for segment in sorted(folder.glob("[0-9]*.jsonl")):
            journal._load(segment)
        return journal

    def is_done(self, index: int) -> bool:
        """Whether a line is answered."""
        return index < len(self._segment_of) and self._segment_of[index] != _NONE

    def check_input(self, index: int, crc: int) -> None:
        """Raises BatchMistake where an answered line is not the one that was answered."""
        if self._crc_of[index] != crc:
            raise BatchMistake(
                f"--input: line {index + 1} is not what it was when it was answered; "
                f"remove {self._place.name} to begin anew, or choose another --output"
            )

    def write(self, index: int, crc: int, text: str, *, is_error: bool) -> None:
        """Add a line's answer; it outlives this process at once, and the machine after the next `sync`."""
        assert not self.is_done(index), f"line {index} is answered twice"
        rest = f"{index}\t{'e' if is_error else 'a'}\t{crc}\t{text}".encode()
        entry = b"%08x\t%s\n" % (zlib.crc32(rest), rest)
        if self._file is None:
            self._begin()
        assert self._file is not None
        self._file.write(entry)
        self._file.flush()  # to the system, which outlives this process
        self._note(len(self.segments) - 1, self._size, rest)
        self._size += len(entry)

    def sync(self) -> None:
        """Make what was written durable: on the disk here, or at the place it is sent to."""
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        if self._place.local is None or self._size >= _SEGMENT_BYTES:
            self._file.close()
            self._file = None
            self._send(self.segments[-1])

    def read(self, index: int) -> bytes:
        """The output line of an answered line, with its end."""
        return self._reader.read(self._segment_of[index], self._offset_of[index])

    def where(self, index: int) -> tuple[int, int, int]:
        """Segment and offset of an answer, as `SegmentReader` takes them, and the bytes of its output line."""
        return self._segment_of[index], self._offset_of[index], self._size_of[index]

    def by_completion(self) -> Iterator[int]:
        """Answered lines in the order of their answers."""
        done = (index for index in range(len(self._segment_of)) if self.is_done(index))
        return iter(sorted(done, key=lambda index: (self._segment_of[index], self._offset_of[index])))

    def close(self) -> None:
        """Keep everything for another run."""
        if self._file is not None:
            self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._reader.close()
        if self._lock is not None:
            self._lock.close()
        if self._place.local is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """The output is complete: nothing of this is needed any more."""
        self.close()
        if self._place.local is not None:
            # In one move: half a journal would have the other half asked again.
            gone = _gone(self.folder)
            self.folder.rename(gone)
            shutil.rmtree(gone)
        else:
            self._place.files.rm(self._place.path, recursive=True)

    def _begin(self) -> None:
        names = [int(path.stem) for path in self.folder.glob("[0-9]*.jsonl")]
        path = self.folder / f"{max(names, default=0) + 1:06d}.jsonl"
        self._file, self._size = path.open("wb"), 0
        self.segments.append(path)

    def _send(self, segment: Path) -> None:
        if self._place.local is None:
            self._place.files.put_file(str(segment), f"{self._place.path}/{segment.name}")

    def _load(self, segment: Path) -> None:
        self.segments.append(segment)
        offset = 0
        with segment.open("rb") as file:
            for line in file:
                if _is_whole(line):
                    self._note(len(self.segments) - 1, offset, line[9:-1])
                else:
                    self.num_torn += 1
                offset += len(line)

    def _note(self, segment: int, offset: int, rest: bytes) -> None:
        place, kind, crc, answer = rest.split(b"\t", 3)
        index = int(place)
        if self.is_done(index):
            return
        missing = index + 1 - len(self._segment_of)
        if missing > 0:
            self._segment_of.extend([_NONE] * missing)
            self._offset_of.extend([0] * missing)
            self._size_of.extend([0] * missing)
            self._crc_of.extend([0] * missing)
        self._segment_of[index], self._offset_of[index], self._crc_of[index] = segment, offset, int(crc)
        self._size_of[index] = len(answer) + 1
        self.num_done += 1
        self.num_failed += kind == b"e"


def _gone(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.gone")


def _temporary() -> Path:
    """A folder for this process; those of processes that were killed go."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and int(line[:8], 16) == zlib.crc32(line[9:-1])
    except ValueError:
        return False


def _locked(folder: Path, place: Place) -> IO[bytes]:
    lock = (folder / _LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise BatchMistake(f"--output: another job writes it now (it holds {place.name})") from None
    return lock


def _fetch(place: Place, folder: Path) -> None:
    """Bring what earlier runs left at a distant place."""
    try:
        if place.files.isdir(place.path):
            for path in place.files.find(place.path):
                place.files.get_file(path, str(folder / path.rsplit("/", 1)[-1]))
    except Exception as error:  # every file system has errors of its own
        raise BatchMistake(f"{place.flag}: {place.name}: {type(error).__name__}: {error}") from None


def _check_manifest(folder: Path, place: Place, manifest: dict[str, Any]) -> None:
    """Begin with this manifest, or find the same one there."""
    path = folder / _MANIFEST
    if path.exists():
        if json.loads(path.read_text()) == manifest:
            return
        raise BatchMistake(
            f"--input: it is not what {place.name} was begun with; remove that folder to begin anew, "
            "or choose another --output"
        )
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(manifest))
    os.replace(fresh, path)
    if place.local is None:
        try:
            place.files.makedirs(place.path, exist_ok=True)
            place.files.put_file(str(path), f"{place.path}/{_MANIFEST}")
        except Exception as error:  # as above
            raise BatchMistake(f"{place.flag}: {place.name}: cannot be written: {error}") from None
