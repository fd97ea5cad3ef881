"""The command against a gateway with simulated ranks: figures, refusals, deaths, deadlines, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sigmoe.cli import main
from sigmoe.loadtest.document import Document
from tests.cluster.checkpoint_folder import VOCAB_SIZE, write_checkpoint_folder
from tests.cluster.conftest import World, started_world

RANDOM = ("--workload", "random", "--input-tokens", "uniform:4,8", "--output-tokens", "6", "--warmup", "0")


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
async def world(model_dir: Path) -> AsyncIterator[World]:
    async with started_world(model_dir, num_ranks=2, max_requests=8) as running:
        yield running


async def begin(world: World, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sigmoe.cli", "loadtest", "--address", f"127.0.0.1:{world.port}", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process) -> Ended:
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None and b"Traceback" not in err, err.decode()
    return Ended(process.returncode, out.decode(), err.decode())


async def loadtest(world: World, *arguments: str) -> Ended:
    return await end(await begin(world, *arguments))


async def until_asked(world: World, number: int) -> None:
    async with asyncio.timeout(30):
        while len(world.executor.submitted) < number:
            await asyncio.sleep(0.005)


async def test_a_sweep_of_random_prompts(world: World, tmp_path: Path) -> None:
    out, html = tmp_path / "r.json", tmp_path / "r.html"
    files = ("--out", str(out), "--html", str(html))
    sweep = ("--concurrency", "1,4", "--requests", "30", "--sample-interval", "0.05")
    ended = await loadtest(world, *RANDOM, *sweep, *files, "--slo", "ttft < 10s", "--fail-if", "error_rate > 0%")
    assert ended.code == 0, ended
    found = Document.read(out)
    assert [level.label for level in found.levels] == ["concurrency 1", "concurrency 4"]
    for level in found.levels:
        assert level.counts.ok == level.counts.measured == level.counts.met_slo == 30
        lengths = level.measures["output_tokens"]
        assert (lengths.least, lengths.most) == (6, 6)
        assert 4 <= level.measures["input_tokens"].least <= level.measures["input_tokens"].most <= 8
        tokens = round(level.rates.output_tokens * level.rates.window_s)
        assert tokens == 30 * 6, "every token is counted once"
        assert level.server and len(level.server[0].ranks) == 2
    assert found.server.model["vocab_size"] == VOCAB_SIZE and found.server.version
    assert len(world.executor.submitted) == 60
    assert len({request.sampling.seed for _, request in world.executor.submitted[:30]}) == 30
    assert "concurrency 4" in ended.out and html.read_text().startswith("<!DOCTYPE html>")
    await world.settled()


async def test_conversations_are_asked_turn_by_turn(world: World, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"turns": ["a", "b", "c"]}))
    ended = await loadtest(
        world, "--workload", str(chats), "--requests", "2", "--warmup", "0", "--max-tokens", "3", "--json"
    )
    assert ended.code == 0
    counts = json.loads(ended.out)["levels"][0]["counts"]
    assert counts["ok"] == 6
    prompts = [request.prompt for _, request in world.executor.submitted[:3]]
    assert len(prompts[0]) < len(prompts[1]) < len(prompts[2])


async def test_refusals_are_counted(world: World) -> None:
    world.executor.hold()
    process = await begin(world, *RANDOM, "--rate", "200", "--duration", "0.5", "--drain", "20", "--json")
    await until_asked(world, 8)
    async with asyncio.timeout(30):
        while world.gateway._calls.ended["RESOURCE_EXHAUSTED"] < 20:
            await asyncio.sleep(0.01)
    world.executor.go()
    ended = await end(process)
    counts = json.loads(ended.out)["levels"][0]["counts"]
    assert ended.code == 0 and counts["failed"]["RESOURCE_EXHAUSTED"] >= 20
    assert counts["ok"] + sum(counts["failed"].values()) == counts["measured"]
    await world.settled()


async def test_a_server_that_dies_is_counted_and_reported(world: World) -> None:
    process = await begin(world, *RANDOM, "--concurrency", "4", "--duration", "2", "--json")
    await until_asked(world, 20)
    world.executor.hold()
    await world.gateway.stop(grace_s=0.0)
    ended = await end(process)
    counts = json.loads(ended.out)["levels"][0]["counts"]
    assert ended.code == 0 and counts["ok"] >= 10
    assert set(counts["failed"]) <= {"UNAVAILABLE", "CANCELLED"} and counts["failed"]["UNAVAILABLE"] >= 4
    assert any("requests failed" in text for text in json.loads(ended.out)["levels"][0]["warnings"])


async def test_deadlines_are_counted_and_a_run_without_answers_fails(world: World) -> None:
    world.executor.hold()
    ended = await loadtest(world, *RANDOM, "--concurrency", "2", "--duration", "1", "--timeout", "0.2", "--json")
    counts = json.loads(ended.out)["levels"][0]["counts"]
    assert ended.code == 1 and "no request was answered" in ended.err
    assert counts["failed"]["DEADLINE_EXCEEDED"] == counts["measured"] > 0
    world.executor.go()
    await world.settled()


async def test_ctrl_c_keeps_what_was_measured(world: World, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    process = await begin(world, *RANDOM, "--concurrency", "2,4", "--duration", "600", "--out", str(out))
    await until_asked(world, 50)
    process.send_signal(signal.SIGINT)
    ended = await end(process)
    assert ended.code == 130 and "concurrency 2" in ended.out
    found = Document.read(out)
    assert found.is_interrupted and len(found.levels) == 1 and found.levels[0].counts.ok >= 40
    await world.settled()


async def test_fail_if_sets_the_exit_code(world: World) -> None:
    ended = await loadtest(world, *RANDOM, "--requests", "5", "--fail-if", "ttft_p50 > 1us")
    assert ended.code == 1 and "--fail-if ttft_p50 > 1us: true at concurrency 1" in ended.out
    assert "a --fail-if is true" in ended.err


async def test_a_trace_is_replayed(world: World, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "\n".join(json.dumps({"timestamp": t / 10, "input_tokens": 5 + t, "output_tokens": 2}) for t in range(9))
    )
    ended = await loadtest(world, "--trace", str(trace), "--trace-speed", "4", "--json")
    level = json.loads(ended.out)["levels"][0]
    assert ended.code == 0 and level["counts"]["ok"] == 9
    assert [len(request.prompt) for _, request in world.executor.submitted] == list(range(5, 14))


async def test_finished_results_are_compared_and_drawn(world: World, tmp_path: Path, capsys: Any) -> None:
    out, html = str(tmp_path / "r.json"), tmp_path / "r.html"
    assert (await loadtest(world, *RANDOM, "--requests", "5", "--out", out)).code == 0
    assert main(["loadtest", "compare", out, out]) == 0
    assert "TTFT p50" in capsys.readouterr().out
    assert main(["loadtest", "report", out, "--html", str(html)]) == 0 and html.stat().st_size > 10_000
    assert main(["loadtest", "compare", out, str(html)]) == 2
    assert "r.html: is no result of `sigmoe loadtest`" in capsys.readouterr().err


def test_a_server_that_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "--address", "127.0.0.1:1"]) == 1
    assert "sigmoe serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "1,x"], "--concurrency: '1,x' are no whole numbers"),
        (["--concurrency", "0"], "--concurrency: '0': numbers above 0"),
        (["--concurrency", "1000000"], "up to 100000 are allowed"),
        (["--rate", "nan"], "--rate: 'nan'"),
        (["--rate", "-1"], "--rate: '-1'"),
        (["--rate", "1", "--concurrency", "1"], "--rate: --concurrency is given, too"),
        (["--find-max", "ttft_p99 < 1s", "--concurrency", "2"], "--find-max: searches rates"),
        (["--find-max", "ttft < 1s"], "--find-max: 'ttft < 1s': ttft is nothing"),
        (["--fail-if", "x"], "--fail-if: 'x' is not of the form"),
        (["--slo", "ttft"], "--slo: 'ttft' is not of the form"),
        (["--duration", "0"], "--duration: 0.0 is not allowed"),
        (["--duration", "inf"], "--duration: inf is not allowed"),
        (["--requests", "0"], "--requests: 0 is not allowed"),
        (["--warmup", "-1"], "--warmup: -1.0 is not allowed: a number from 0 on is"),
        (["--timeout", "0"], "--timeout: 0.0 is not allowed"),
        (["--n", "2"], "--n: 2 is not allowed"),
        (["--arrivals", "gamma"], "--arrivals: shapes --rate"),
        (["--rate", "1", "--burstiness", "2"], "--burstiness: is of --arrivals gamma alone"),
        (["--input-tokens", "5"], "--input-tokens: medical has prompts of its own"),
        (["--workload", "random", "--input-tokens", "x"], "--input-tokens: 'x'"),
        (["--out", "no/such/folder/x.json"], "--out: no/such/folder is no folder"),
    ],
)
def test_wrong_flags_are_named_before_anything_is_asked(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadtest", "--address", "127.0.0.1:1", *arguments]) == 2
    assert message in capsys.readouterr().err


async def test_wrong_files_are_named(world: World, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "fine"}\n{"prompt": 7}\n')
    ended = await loadtest(world, "--workload", str(bad))
    assert ended.code == 2 and "bad.jsonl, line 2: prompt: expected a text" in ended.err
    ended = await loadtest(world, "--workload", "sharegpt")
    assert ended.code == 2 and "--workload: 'sharegpt' is no file and none of medical, medical-diseases" in ended.err
    ended = await loadtest(world, "--trace", str(bad))
    assert ended.code == 2 and "bad.jsonl, line 1: timestamp" in ended.err
