"""The checkpoint: what was written counts, what was torn does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.batch_journal import Journal
from cluster.batch_places import BatchMistake, Place

MANIFEST = {"version": 1}


def opened(folder: Path | str, manifest: dict[str, int] = MANIFEST) -> Journal:
    return Journal.open(Place.of("--output", str(folder)), manifest)


def test_answers_are_found_again_whatever_their_order(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    for index in (2, 0, 5):
        journal.write(index, 7 + index, f"answer\t{index}", is_error=index == 5)
    journal.close()
    again = opened(tmp_path / "j")
    again.write(1, 8, "later", is_error=False)
    assert [again.is_done(index) for index in range(8)] == [True, True, True, False, False, True, False, False]
    assert [again.read(index) for index in (0, 1, 2)] == [b"answer\t0\n", b"later\n", b"answer\t2\n"]
    assert [again.where(index)[2] for index in (0, 1)] == [len("answer\t0\n"), len("later\n")]
    assert (again.num_done, again.num_failed, again.num_torn) == (4, 1, 0)
    assert list(again.by_completion()) == [2, 0, 5, 1]
    again.remove()
    assert not (tmp_path / "j").exists()


def test_an_answer_outlives_the_process_at_once(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.write(0, 1, "x", is_error=False)
    assert b"x\n" in (tmp_path / "j" / "000001.jsonl").read_bytes(), "before any sync"
    journal.close()


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(1, 60), filler=st.sampled_from([b"", b"\0\0\0\0", b"\0\n"]))
def test_a_torn_end_is_not_answered(tmp_path_factory: pytest.TempPathFactory, cut: int, filler: bytes) -> None:
    folder = tmp_path_factory.mktemp("torn") / "j"
    journal = opened(folder)
    for index in range(3):
        journal.write(index, index, json.dumps({"n": index}), is_error=False)
    journal.close()
    segment = folder / "000001.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-cut] + filler)
    again = opened(folder)
    kept = whole[:-cut].count(b"\n")
    assert [again.is_done(index) for index in range(3)] == [index < kept for index in range(3)]
    for index in range(kept, 3):
        again.write(index, index, "again", is_error=False)
    assert [again.read(index) for index in range(3)] == [
        b'{"n": %d}\n' % index if index < kept else b"again\n" for index in range(3)
    ]
    again.close()


def test_a_journal_of_many_segments_opens_few_at_a_time() -> None:
    MemoryFileSystem.store.clear()
    journal = opened("memory://batch/out.journal")
    for index in range(300):
        journal.write(index, 1, f"answer {index}", is_error=False)
        journal.sync()  # where the journal is distant, a segment is what came between two of these
    assert len(journal.segments) == 300
    before = len(os.listdir("/proc/self/fd"))
    assert [journal.read(index) for index in range(300)] == [b"answer %d\n" % index for index in range(300)]
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert journal.read(0) == b"answer 0\n", "closed meanwhile"
    journal.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_another_input_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "j").close()
    with pytest.raises(BatchMistake, match=r"it is not what .* was begun with"):
        opened(tmp_path / "j", {"version": 2})
    journal = opened(tmp_path / "j")
    journal.write(0, 1, "x", is_error=False)
    journal.check_input(0, 1)
    with pytest.raises(BatchMistake, match="line 1 is not what it was"):
        journal.check_input(0, 2)
    journal.close()


def test_two_jobs_do_not_write_one_output(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    with pytest.raises(BatchMistake, match="another job writes it now"):
        opened(tmp_path / "j")
    journal.close()
    opened(tmp_path / "j").close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BatchMistake, match=r"--output: .*file/j"):
        opened(tmp_path / "file" / "j")


def test_a_distant_journal_is_sent_and_fetched() -> None:
    MemoryFileSystem.store.clear()
    journal = opened("memory://batch/out.journal")
    journal.write(0, 1, "first", is_error=False)
    journal.sync()
    journal.write(1, 1, "second", is_error=False)
    journal.close()
    assert sorted(map(os.path.basename, MemoryFileSystem.store)) == ["000001.jsonl", "000002.jsonl", "manifest.json"]
    again = opened("memory://batch/out.journal")
    assert [again.read(index) for index in range(2)] == [b"first\n", b"second\n"]
    again.remove()
    assert not MemoryFileSystem.store
