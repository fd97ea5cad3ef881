"""Reading a batch: files, folders, URLs; the same lines however the files are cut."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import batch_input
from cluster.batch_input import BatchInput, block_reader, numbered, split_lines
from cluster.batch_places import BatchMistake


def raws(source: BatchInput) -> list[bytes | None]:
    return [line.raw for line in numbered(source.rows())]


@given(
    lines=st.lists(st.binary(max_size=9).map(lambda raw: raw.replace(b"\n", b"x").replace(b"\r", b"y")), max_size=12),
    block_bytes=st.integers(1, 30),
    has_end=st.booleans(),
)
def test_blocks_together_hold_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], block_bytes: int, has_end: bool
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "in.jsonl"
    text = b"\n".join(lines) + (b"\n" if has_end else b"")
    path.write_bytes(text)
    source = BatchInput.find(str(path))
    read = block_reader(source)
    found = [raw for block in source.blocks(block_bytes) for raw in read(block)]
    assert found == text.split(b"\n")[: len(found)]
    assert b"\n".join(filter(None, found)).strip() == b"\n".join(filter(None, text.split(b"\n"))).strip()
    assert len(found) == len(io.BytesIO(text).readlines())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_line_too_long_is_one_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(batch_input, "MAX_LINE", 10)
    monkeypatch.setattr(batch_input, "_CHUNK", chunk)
    file = io.BytesIO(b"short\n" + b"x" * 11 + b"\n" + b"y" * 10 + b"\r\n\nlast" + b"z" * 30)
    assert list(split_lines(file, None)) == [b"short", None, None, b"", None]
    assert list(split_lines(io.BytesIO(b"y" * 10 + b"\na\r\n"), None)) == [b"y" * 10, b"a"]


def test_blank_lines_are_no_lines_but_count(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n1\n  \n\r\n2")
    found = list(numbered(BatchInput.find(str(tmp_path / "a.jsonl")).rows()))
    assert [(line.index, line.number, line.raw) for line in found] == [(0, 2, b"1"), (1, 5, b"2")]


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    for name, text in (("b.jsonl", b"3\n"), ("a/x.jsonl", b"1\n2"), (".hidden.jsonl", b"no"), ("notes.txt", b"no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    with gzip.open(tmp_path / "c.jsonl.gz", "wb") as file:
        file.write(b"4\n5\n")
    found = list(numbered(BatchInput.find(str(tmp_path)).rows()))
    assert [(line.index, line.file, line.raw) for line in found] == [
        (0, 0, b"1"), (1, 0, b"2"), (2, 1, b"3"), (3, 2, b"4"), (4, 2, b"5"),
    ]  # fmt: skip
    assert raws(BatchInput.find(f"{tmp_path}/*.jsonl")) == [b"3"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server over the test's folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls_are_read(tmp_path: Path, web: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n2\n")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/b.jsonl", "3\n")
    assert raws(BatchInput.find(f"file://{tmp_path}/a.jsonl")) == [b"1", b"2"]
    assert raws(BatchInput.find(f"zip://in/b.jsonl::file://{tmp_path}/a.zip")) == [b"3"]
    assert raws(BatchInput.find(f"zip://in::file://{tmp_path}/a.zip")) == [b"3"]
    assert raws(BatchInput.find(f"{web}/a.jsonl")) == [b"1", b"2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "--input: empty"),
        ("/nowhere/at/all.jsonl", "no such file or folder"),
        ("frob://a/b", "frob"),
        ("empty", "holds no file of lines"),
        ("http://127.0.0.1:1/a.jsonl", "--input"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BatchMistake, match=message):
        BatchInput.find(name)
