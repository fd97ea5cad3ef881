"""A batch as a job of a Ray cluster, with ranks of its own: killed, submitted again, and nothing left behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.ray_head import DEADLINE_S, RayHead, driver_of, ray_head
from cluster.batch_input import BLOCK_BYTES
from tests.cluster.batch_command import answers, num_written, summary, write_input
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.cluster.executor_contract import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

COUNT = 400
PADDING = BLOCK_BYTES // COUNT  # so that Ray Data reads the input, as it does what is more than a block


def wait_for(is_there: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not is_there():
        assert time.monotonic() < give_up, f"no {what} in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_config().model_dir, tmp_path_factory.mktemp("batch") / "model"))
    write_tokenizer_files(folder)
    return folder


def words(source: Path, out: Path, model: Path) -> list[str]:
    ranks = ["--ranks", "2", "--set", "engine.max_sequences=4", "--set", "engine.kv_cache_size=4MiB"]
    given = ["--input", str(source), "--output", str(out), "--model", str(model), "--set", "model.dtype=float32"]
    return ["sigmoe", "batch", *given, *ranks]


def kill(head: RayHead, out: Path) -> None:
    driver = driver_of(out)
    assert driver is not None
    driver.kill()
    wait_for(lambda: not head.leftovers(), "end of the actors of the killed job")


def test_a_job_that_was_killed_goes_on_and_leaves_nothing_behind(head: RayHead, model: Path, tmp_path: Path) -> None:
    # Log-probabilities make more than one piece of the answers, which Ray Data writes.
    write_input(tmp_path / "in.jsonl", COUNT, max_tokens=60, padding=PADDING, logprobs=True, top_logprobs=20)
    out, journal, fresh = (tmp_path / name for name in ("out.jsonl", "out.jsonl.journal", ".out.jsonl.tmp"))
    command = words(tmp_path / "in.jsonl", out, model)

    done = head.submit("first", *command, wait=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: num_written(journal) >= COUNT // 10 + 5, "answers")
    kill(head, out)
    status = head.ray("job", "status", "first")
    assert "failed" in (status.stdout + status.stderr).lower()
    assert 0 < num_written(journal) < COUNT
    assert not out.exists()

    head.submit("second", *command, wait=False)
    wait_for(fresh.exists, "output being written")
    kill(head, out)
    assert num_written(journal) == COUNT
    assert fresh.exists() and not out.exists(), "killed while it wrote"

    done = head.submit("third", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = next(line for line in done.stdout.splitlines() if line.startswith('{"event"'))
    told = summary(printed)
    assert (told["lines"], told["failed"], told["resumed"]) == (COUNT, COUNT // 10, COUNT)
    found = answers(out)
    assert [line["custom_id"] for line in found] == [f"q{index}" for index in range(COUNT)]
    assert all((line["error"] is None) == (index % 10 != 3) for index, line in enumerate(found))
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}
    assert "succeeded" in head.ray("job", "status", "third").stdout.lower()
    logs = head.ray("job", "logs", "third").stdout
    assert "tokens/s" in logs and "pieces, by Ray Data" in logs
    wait_for(lambda: not head.leftovers(), "end of the actors of the job")
