"""`sigmoe batch` against a server, killed again and again: every line once, as if it had never been killed."""

from __future__ import annotations

import asyncio
import random
import signal
import zipfile
from pathlib import Path

import pytest

from tests.cluster.batch_command import answers, kill_at, run, started, summary, write_input
from tests.cluster.conftest import Start, World

COUNT = 120


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_input(tmp_path / "in.jsonl", COUNT)
    return tmp_path / "in.jsonl"


def options(world: World, source: Path | str, out: Path | str) -> tuple[str, ...]:
    return ("--input", str(source), "--output", str(out), "--target", f"127.0.0.1:{world.port}")


async def test_killed_at_random_moments_it_loses_and_repeats_nothing(start: Start, source: Path) -> None:
    whole, cut = source.with_name("whole.jsonl"), source.with_name("cut.jsonl")
    async with start(step_s=0.005) as world:
        code, out, err = await run(*options(world, source, whole))
        assert code == 0, err
        assert summary(out)["failed"] == COUNT // 10
        draw = random.Random(11)
        for least in (1, 30, 60, 90):
            given = (*options(world, source, cut), "--concurrency", "8")
            await kill_at(least + draw.randrange(20), cut.with_name("cut.jsonl.journal"), *given)
            assert not cut.exists(), "the output is there as a whole or not at all"
        code, out, err = await run(*options(world, source, cut))
        assert code == 0, err
    assert answers(cut) == answers(whole)
    assert [line["custom_id"] for line in answers(cut)] == [f"q{index}" for index in range(COUNT)]
    assert summary(out)["resumed"] >= 90
    assert summary(out)["lines"] == COUNT
    assert sorted(path.name for path in source.parent.iterdir()) == ["cut.jsonl", "in.jsonl", "whole.jsonl"]


async def test_once_complete_it_stays(world: World, source: Path) -> None:
    given = options(world, source, source.with_name("out.jsonl"))
    assert (await run(*given))[0] == 0
    before = source.with_name("out.jsonl").read_bytes()
    code, out, err = await run(*given)
    assert (code, "is complete: 120 lines, 12 failed" in out) == (0, True), err
    assert (summary(out)["lines"], summary(out)["resumed"]) == (120, 120)
    assert (await run(*given, "--fail-on-error"))[0] == 1
    assert source.with_name("out.jsonl").read_bytes() == before
    code, _, err = await run(*options(world, source, source))
    assert (code, "exists and is no output of a batch" in err) == (2, True), "the input itself"
    write_input(source, COUNT + 1)
    code, _, err = await run(*given)
    assert (code, "does not answer this input line by line" in err) == (2, True)


async def test_the_order_of_answers_on_request(world: World, source: Path) -> None:
    out = source.with_name("out.jsonl")
    code, _, err = await run(*options(world, source, out), "--order", "completed", "--fail-on-error")
    assert code == 1, "lines failed, and that was to count"
    found = [line["custom_id"] for line in answers(out)]
    assert sorted(found) == sorted(f"q{index}" for index in range(COUNT)), err
    assert found[0] == "q3", "what is at fault is answered first"
    assert (await run(*options(world, source, out)))[0] == 0, "it is complete, in whatever order"


async def test_a_folder_of_answers_for_a_folder_of_requests(world: World, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, count in (("a.jsonl", 7), ("b.jsonl", 0), ("c.jsonl", 5)):
        write_input(tmp_path / "in" / name, count)
    text = (tmp_path / "in" / "c.jsonl").read_text()
    (tmp_path / "in" / "c.jsonl").write_text(text.replace('"q', '"c'))  # ids are unique over all files
    code, _, err = await run(*options(world, tmp_path / "in", f"{tmp_path}/out/"))
    assert code == 0, err
    assert {path.name: len(answers(path)) for path in (tmp_path / "out").iterdir()} == {
        "a.jsonl": 7, "b.jsonl": 0, "c.jsonl": 5,
    }  # fmt: skip
    assert [line["custom_id"] for line in answers(tmp_path / "out" / "c.jsonl")] == [f"c{index}" for index in range(5)]
    code, out, _ = await run(*options(world, tmp_path / "in", f"{tmp_path}/out/"))
    assert (code, "is complete: 12 lines" in out) == (0, True)


async def test_urls_of_file_systems(world: World, source: Path) -> None:
    with zipfile.ZipFile(source.with_name("in.zip"), "w") as archive:
        archive.write(source, "in.jsonl")
    chained = f"zip://in.jsonl::file://{source.with_name('in.zip')}"
    code, _, err = await run(*options(world, chained, f"file://{source.with_name('out.jsonl')}"))
    assert code == 0, err
    assert len(answers(source.with_name("out.jsonl"))) == COUNT


async def test_told_to_stop_it_says_how_to_go_on(start: Start, source: Path) -> None:
    out = source.with_name("out.jsonl")
    async with start(step_s=0.02) as world:
        process = await started(*options(world, source, out), "--concurrency", "2")
        assert process.stdout is not None
        while not any(source.parent.glob("*.journal/0*")):
            assert process.returncode is None
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        printed, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert b"submit it again to go on" in printed
        assert not out.exists()
        await world.settled()


async def test_nobody_there_is_said_after_the_time_given(source: Path, tmp_path: Path) -> None:
    code, _, err = await run(
        "--input", str(source), "--output", str(tmp_path / "o"), "--target", "127.0.0.1:1", "--patience", "0"
    )
    assert (code, "no answer for 0 s" in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--input", "/nowhere.jsonl"), "--input: /nowhere.jsonl: no such file"),
        (("--output", "frob://x"), "--output: frob://x"),
        (("--output", "/proc/nowhere/out.jsonl"), "--output: /proc/nowhere/out.jsonl.journal"),
        (("--concurrency", "0"), "--concurrency: 0 is not allowed"),
        (("--priority", "101"), "--priority: 101 is not allowed"),
        (("--ranks", "2"), "--ranks, --set: are for ranks of the job's own"),
        (("--model", "x"), "--target: is for a server that runs"),
    ],
)
async def test_wrong_flags_are_named(source: Path, tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    fixed = ("--input", str(source), "--output", str(tmp_path / "o"), "--target", "127.0.0.1:1", "--patience", "0")
    code, _, err = await run(*fixed, *given)
    assert (code, message in err, "Traceback" in err) == (2, True, False), err
