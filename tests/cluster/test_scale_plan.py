"""`sigmoe serve --plan-scale`, as users run it."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from sigmoe.cli import main
from tests.cluster.conftest import Start

DEMO = str(Path(__file__).resolve().parents[2] / "examples" / "demo.yaml")
ELASTIC = ("--set", "scaling.min_replicas=0", "--set", "scaling.max_replicas=4")


def test_the_rules_and_typical_loads_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", DEMO, "--plan-scale", *ELASTIC]) == 0
    shown = capsys.readouterr().out
    assert "replicas  0 to 4, each a group of 2 ranks" in shown and "for 128 sequences at a time" in shown
    for row in (
        ("nothing to do", "1", "0", "600 s", "nothing to do for 600 s"),
        ("half as many more wait, 2 s by now", "1", "2", "3 s", "64 sequences waiting, the first for 2.0 s, over 1 s"),
        ("all places taken, nobody waits", "4", "4", "stays", "512 sequences under way, 3 would bear 230 with ease"),
        ("none serves, one request waits", "0", "1", "0 s", "1 sequence waiting and nothing serves"),
    ):
        assert any(" ".join(line.split()) == " ".join(row) for line in shown.splitlines()), row


def test_json_has_the_policy_and_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", DEMO, "--plan-scale", "--json", *ELASTIC]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["policy"]["max_replicas"] == 4 and document["policy"]["sequences_per_replica"] == 128
    assert {line["serving"] for line in document["plan"]} == {0, 1, 4}
    assert all(0 <= line["wanted"] <= 4 and line["reason"] for line in document["plan"])


def test_a_fixed_number_has_nothing_to_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", DEMO, "--plan-scale"]) == 0
    shown = capsys.readouterr().out
    assert "nothing is ever decided" in shown and "load that lasts" not in shown


async def test_the_load_of_a_running_server_is_judged(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    async with start(num_ranks=2) as world:
        target = f"127.0.0.1:{world.port}"
        code = await asyncio.to_thread(main, ["serve", DEMO, "--plan-scale", "--target", target, "--json", *ELASTIC])
    assert code == 0
    (line,) = json.loads(capsys.readouterr().out)["plan"]
    assert (line["serving"], line["wanted"], line["after_s"]) == (1, 0, 600.0)
    assert line["situation"] == f"now at {target}: 0 sequences"


def test_a_target_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    assert main(["serve", DEMO, "--plan-scale", "--target", target, *ELASTIC]) == 3
    assert f"--target: {target}:" in capsys.readouterr().err


def test_a_target_without_a_plan_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", DEMO, "--target", "127.0.0.1:1"]) == 2
    assert "--target: belongs to --plan-scale" in capsys.readouterr().err
