"""A batch under way, against an answerer that fails as told: nothing is lost, repeated, or held too long."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import batch_run
from cluster.batch_format import BatchRequest
from cluster.batch_input import Line
from cluster.batch_journal import Journal
from cluster.batch_places import BatchMistake, Place
from cluster.batch_run import BatchRun, Counts, ServerGone
from cluster.batch_throttle import Load, Throttle
from sigmoe.errors import InvalidRequest, Overloaded, ServerFailure, SigmoeError, Unavailable, Violation
from sigmoe.results import Choice, Completion, Usage

USAGE = Usage(prompt_tokens=3, cached_tokens=0, output_tokens=2, preemptions=0, queue_s=0, prefill_s=0, decode_s=0)


class Scripted:
    """Answers with the custom_id; `fail` may raise, given the id and how often it was asked."""

    def __init__(self, fail: Callable[[str, int], SigmoeError | None] = lambda name, count: None) -> None:
        self.asked: dict[str, int] = {}
        self.num_active = self.most_active = 0
        self.load_error: SigmoeError | None = None
        self._fail = fail

    async def answer(self, request: BatchRequest) -> Completion:
        count = self.asked[request.custom_id] = self.asked.get(request.custom_id, 0) + 1
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        try:
            await asyncio.sleep(0)
            if error := self._fail(request.custom_id, count):
                raise error
        finally:
            self.num_active -= 1
        choice = Choice(index=0, text=request.custom_id, finish_reason="stop", usage=USAGE)
        return Completion(request_id="r", choices=(choice,))

    async def model_name(self) -> str:
        return "m"

    async def load(self) -> Load:
        if self.load_error is not None:
            raise self.load_error
        return Load(num_running=self.num_active, num_waiting=0)


def lines(count: int, **body: Any) -> Iterator[Line]:
    for index in range(count):
        raw = json.dumps({"custom_id": f"q{index}", "prompt": "a"} | body).encode()
        yield Line(index=index, file=0, number=index + 1, raw=raw)


def raw_lines(*raws: bytes | None) -> list[Line]:
    return [Line(index=index, file=0, number=index + 1, raw=raw) for index, raw in enumerate(raws)]


def run_of(journal: Journal, answerer: Scripted, concurrency: int = 4, patience_s: float = 60.0) -> BatchRun:
    return BatchRun(answerer, journal, Throttle(concurrency, concurrency), Counts(), patience_s=patience_s)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(Place.of("--output", str(tmp_path / "out.journal")), {})
    yield journal
    journal.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "_LOOK_S", 0.001)


def written(journal: Journal, index: int) -> Any:
    return json.loads(journal.read(index))


async def test_every_line_is_asked_once_and_answered(journal: Journal) -> None:
    answerer = Scripted()
    await run_of(journal, answerer).run(lines(100), 1)
    assert answerer.asked == {f"q{index}": 1 for index in range(100)}
    texts = [written(journal, index)["response"]["body"]["choices"][0]["text"] for index in range(100)]
    assert texts == list(answerer.asked)
    assert answerer.most_active == 4


async def test_a_million_lines_would_not_sit_in_memory(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    peak = 0

    class Held(Line):
        __slots__ = ("__weakref__",)

    def endless() -> Iterator[Line]:
        nonlocal peak
        for line in lines(5_000):
            held = Held(index=line.index, file=0, number=line.number, raw=line.raw)
            alive.add(held)
            peak = max(peak, len(alive))
            yield held

    monkeypatch.setattr(batch_run, "_LOOK_AHEAD", 16)
    await run_of(journal, Scripted(), concurrency=8).run(endless(), 1)
    assert journal.num_done == 5_000
    assert peak <= 16 + 16 + 8 + 4, "what is read ahead, twice while it changes hands, and what is under way"


async def test_what_is_wrong_stays_on_its_line(journal: Journal) -> None:
    def fail(name: str, count: int) -> SigmoeError | None:
        return InvalidRequest("no", [Violation("sampling.top_k", "is wrong")]) if name == "bad" else None

    await run_of(journal, Scripted(fail)).run(
        raw_lines(
            b'{"custom_id": "a", "prompt": "x"}',
            b"garbage",
            b'{"custom_id": "a", "prompt": "x"}',
            b'{"custom_id": "bad", "prompt": "x"}',
            b'{"custom_id": "other", "prompt": "x", "model": "n"}',
            None,
            b'{"custom_id": "a", "prompt": 7}',
            b'{"custom_id": "b", "prompt": "x", "seed": -1}',
        ),
        1,
    )
    errors = [written(journal, index)["error"] for index in range(8)]
    codes = [error and error["code"] for error in errors]
    assert codes[:7] == [
        None, "invalid_json", "duplicate_custom_id", "invalid_request", "model_not_found", "line_too_long",
        "duplicate_custom_id",
    ]  # fmt: skip
    assert errors[3]["param"] == "top_k"
    assert "'n' is not served here: 'm' is" in errors[4]["message"]
    assert [written(journal, index)["custom_id"] for index in (1, 2, 3)] == [None, "a", "bad"]
    assert (journal.num_done, journal.num_failed) == (8, 6), "the scripted server minds no seed"


async def test_a_full_server_is_asked_again_and_less(journal: Journal) -> None:
    answerer = Scripted(lambda name, count: Overloaded("full", 0.001) if count <= 7 else None)
    run = run_of(journal, answerer, concurrency=64)
    await run.run(lines(80), 1)
    assert (journal.num_done, journal.num_failed) == (80, 0)


async def test_a_server_that_was_gone_is_waited_for(journal: Journal) -> None:
    answerer = Scripted()

    def fail(name: str, count: int) -> SigmoeError | None:
        if name == "q20" and count == 1:
            answerer.load_error = Unavailable("gone")
            asyncio.get_running_loop().call_later(0.05, setattr, answerer, "load_error", None)
        return Unavailable("gone") if answerer.load_error else None

    answerer._fail = fail
    await run_of(journal, answerer).run(lines(60), 1)
    assert (journal.num_done, journal.num_failed) == (60, 0)


async def test_a_server_that_stays_away_ends_the_job_and_loses_nothing(journal: Journal) -> None:
    answerer = Scripted()

    def fail(name: str, count: int) -> SigmoeError | None:
        if name == "q20":
            answerer.load_error = Unavailable("gone")
        return answerer.load_error

    answerer._fail = fail
    with pytest.raises(ServerGone, match="gone"):
        await run_of(journal, answerer, patience_s=0.01).run(lines(10_000), 1)
    assert 16 <= journal.num_done <= 30
    assert journal.num_failed == 0


async def test_a_line_on_which_the_server_fails_is_given_up_and_the_others_are_not(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "_PAUSE_S", 0.0)
    answerer = Scripted(
        lambda name, count: {"q3": ServerFailure("broken"), "q5": Unavailable("lost with its ranks")}.get(name)
    )
    await run_of(journal, answerer).run(lines(20), 1)
    assert [index for index in range(20) if written(journal, index)["error"]] == [3, 5]
    assert answerer.asked["q3"] == answerer.asked["q5"] == 5


async def test_a_run_goes_on_where_another_was_cut_off(tmp_path: Path) -> None:
    place, asked = Place.of("--output", str(tmp_path / "out.journal")), dict[str, int]()
    for most in (7, 31, 1000):
        journal = Journal.open(place, {})
        answerer = Scripted()
        run = run_of(journal, answerer)
        task = asyncio.create_task(run.run(lines(90), 1))
        while not task.done() and len(answerer.asked) < most:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        num_done = journal.num_done
        assert [index for index in range(90) if journal.is_done(index)] != [] and num_done <= 90
        for name in answerer.asked:
            asked[name] = asked.get(name, 0) + 1
        journal.close()
    assert num_done == 90
    assert sum(asked.values()) <= 90 + 2 * 4, "only what was under way is asked again"


async def test_an_input_that_changed_is_refused(journal: Journal) -> None:
    await run_of(journal, Scripted()).run(lines(10), 1)
    with pytest.raises(BatchMistake, match="line 1 is not what it was"):
        await run_of(journal, Scripted()).run(lines(10, max_tokens=3), 1)


async def test_a_disk_that_is_full_ends_the_job(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "write", full)
    with pytest.raises(OSError, match="No space left"):
        await run_of(journal, Scripted()).run(lines(100), 1)
