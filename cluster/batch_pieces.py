"""The output in pieces: which answers of a journal go where, so that any process can write each piece by itself."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

from cluster.batch_input import BLOCK_BYTES
from cluster.batch_journal import Journal, SegmentReader


class Answer(NamedTuple):
    """An output line and its place."""

    file: int
    start: int  # the first byte of it in the file
    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Answers that follow one another in the output, some 16 MiB of them, and where in the journal each begins."""

    number: int  # of its first answer in the output
    start: int  # the first byte of that in its file
    segments: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Every answer's place. 12 bytes of memory a line."""

    firsts: list[int]  # number of the first answer of each file
    sizes: list[int]  # of the files, in bytes
    pieces: list[Piece]

    @classmethod
    def of(cls, journal: Journal, order: Iterable[int], firsts: list[int]) -> Self:
        """The lines in `order`, cut into files at `firsts`."""
        sizes, pieces, size = [0] * len(firsts), list[Piece](), 0
        for number, index in enumerate(order):
            segment, offset, num_bytes = journal.where(index)
            file = file_of(firsts, number)
            if not pieces or size >= BLOCK_BYTES:
                pieces.append(Piece(number=number, start=sizes[file]))
                size = 0
            pieces[-1].segments.append(segment)
            pieces[-1].offsets.append(offset)
            sizes[file] += num_bytes
            size += num_bytes
        return cls(firsts=firsts, sizes=sizes, pieces=pieces)

    @property
    def num_lines(self) -> int:
        """In all files."""
        return sum(len(piece.offsets) for piece in self.pieces)


def answers(piece: Piece, firsts: Sequence[int], segments: Sequence[Path]) -> Iterator[Answer]:
    """The answers of a piece, in order."""
    file, start = file_of(firsts, piece.number), piece.start
    reader = SegmentReader(segments)
    try:
        for number, (segment, offset) in enumerate(zip(piece.segments, piece.offsets, strict=True), piece.number):
            if file_of(firsts, number) != file:
                file, start = file_of(firsts, number), 0
            line = reader.read(segment, offset)
            yield Answer(file, start, line)
            start += len(line)
    finally:
        reader.close()


def put(found: Iterable[Answer], files: Sequence[Path]) -> None:
    """Write answers to their places in files that are there: again, where it was done before, changes nothing."""
    for number, group in groupby(found, key=lambda answer: answer.file):
        with files[number].open("r+b", buffering=2**20) as file:
            end = 0
            for answer in group:
                if answer.start != end:
                    file.seek(answer.start)
                file.write(answer.line)
                end = answer.start + len(answer.line)


def put_here(layout: Layout, segments: Sequence[Path], files: Sequence[Path]) -> None:
    """Write all pieces in this process."""
    for piece in layout.pieces:
        put(answers(piece, layout.firsts, segments), files)


def file_of(firsts: Sequence[int], number: int) -> int:
    """The file that a line is in, given the first line of each."""
    return bisect_left(firsts, number + 1) - 1
