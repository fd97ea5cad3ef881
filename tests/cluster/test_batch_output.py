"""The output: every answer at its place, however it is cut; there as a whole, and nothing beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import batch_pieces
from cluster.batch_input import BatchInput
from cluster.batch_journal import Journal
from cluster.batch_output import BatchOutput, Order
from cluster.batch_pieces import Layout, answers, put, put_here
from tests.cluster.batch_journals import ANSWERS, filled, text


@pytest.fixture
def source(tmp_path: Path) -> BatchInput:
    """Three files of four, none and three lines."""
    (tmp_path / "in").mkdir()
    for name, count in (("a.jsonl", 4), ("b.jsonl.gz", 0), ("c.jsonl", 3)):
        (tmp_path / "in" / name).write_text("{}\n" * count)
    return BatchInput.find(str(tmp_path / "in"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_pieces, "BLOCK_BYTES", 10)


@pytest.fixture
def distant() -> Iterator[None]:
    MemoryFileSystem.store.clear()
    yield
    MemoryFileSystem.store.clear()


def put_shuffled(layout: Layout, segments: Sequence[Path], files: Sequence[Path]) -> None:
    """As tasks do: in any order, and one of them twice."""
    pieces = [*layout.pieces, layout.pieces[-1]]
    random.Random(3).shuffle(pieces)
    for piece in pieces:
        put(answers(piece, layout.firsts, segments), files)


def finish(output: BatchOutput, journal: Journal, starts: list[int], num_lines: int) -> Layout:
    layout = output.layout(journal, starts, num_lines)
    output.finish(layout, journal, put_shuffled)
    return layout


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    block_bytes=st.integers(1, 90),
    seed=st.integers(0, 3),
)
def test_pieces_together_hold_every_answer_at_its_place(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cuts: list[int], block_bytes: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    journal = filled(folder / "j", lengths, seed)
    firsts = [0, *sorted(min(cut, len(lengths)) for cut in cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_pieces, "BLOCK_BYTES", block_bytes)
        layout = Layout.of(journal, range(len(lengths)), firsts)
    files = [folder / str(number) for number in range(len(firsts))]
    for file, size in zip(files, layout.sizes, strict=True):
        file.write_bytes(bytes(size))
    if layout.pieces:
        put_shuffled(layout, journal.segments, files)
    ends = [*firsts[1:], len(lengths)]
    for file, first, end in zip(files, firsts, ends, strict=True):
        expected = "".join(f"{text(index, lengths[index])}\n" for index in range(first, end))
        assert file.read_text() == expected
    assert layout.num_lines == len(lengths)
    journal.close()


@pytest.mark.usefixtures("small")
def test_a_file_for_each_of_the_input_s(source: BatchInput, tmp_path: Path) -> None:
    output = BatchOutput.of(f"{tmp_path}/new/out/", source, Order.INPUT)
    journal = filled(tmp_path / "j", ANSWERS[:7])
    layout = finish(output, journal, [0, 4, 4], 7)
    assert len(layout.pieces) > 3
    found = {path.name: path.read_text().split() for path in (tmp_path / "new" / "out").iterdir()}
    lines = [text(index, ANSWERS[index]) for index in range(7)]
    assert found == {"a.jsonl": lines[:4], "b.jsonl": [], "c.jsonl": lines[4:]}
    journal.close()


@pytest.mark.usefixtures("small")
def test_one_file_in_either_order(source: BatchInput, tmp_path: Path) -> None:
    journal = filled(tmp_path / "j", ANSWERS[:7], seed=5)
    lines = [text(index, ANSWERS[index]) for index in range(7)]
    for order, expected in (
        (Order.INPUT, lines),
        (Order.COMPLETED, [lines[index] for index in journal.by_completion()]),
    ):
        out = tmp_path / order.value
        finish(BatchOutput.of(str(out), source, order), journal, [0, 4, 4], 7)
        assert out.read_text().split() == expected
    assert lines != expected
    assert {path.name for path in tmp_path.iterdir()} == {"in", "j", "input", "completed"}
    journal.close()


@pytest.mark.usefixtures("small", "distant")
def test_a_distant_place_gets_whole_files_and_keeps_nothing_else(source: BatchInput, tmp_path: Path) -> None:
    folder = [f"/far/out/{name}.jsonl" for name in "abc"]
    for name, expected in (("out.jsonl", ["/far/out.jsonl"]), ("out/", folder)):
        MemoryFileSystem.store.clear()
        output = BatchOutput.of(f"memory://far/{name}", source, Order.INPUT)
        journal = filled(output.journal.name, ANSWERS[:7])
        finish(output, journal, [0, 4, 4], 7)
        assert sorted(path.name for path in journal.folder.iterdir()) == ["000001.jsonl", "manifest.json"]
        journal.remove()
        assert sorted(MemoryFileSystem.store) == expected
        whole = b"".join(MemoryFileSystem.store[path].getvalue() for path in expected)
        assert whole.decode().split() == [text(index, ANSWERS[index]) for index in range(7)]


def test_what_fails_leaves_an_older_output_alone(source: BatchInput, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("older")
    journal = filled(tmp_path / "j", ANSWERS[:7])
    output = BatchOutput.of(str(out), source, Order.INPUT)

    def full(layout: Layout, segments: Sequence[Path], files: Sequence[Path]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        output.finish(output.layout(journal, [0, 4, 4], 7), journal, full)
    assert out.read_text() == "older"
    output.finish(output.layout(journal, [0, 4, 4], 7), journal, put_here)
    assert len(out.read_text().split()) == 7
    journal.close()
