"""The command line: what is printed where, and the exit codes."""

from __future__ import annotations

import io
import json

import grpc
import pytest

from sigmoe import Client
from sigmoe.cli import build_parser, main
from sigmoe.cli.status import expert_load, ranges

from .conftest import ScriptedServer, bad_request


def test_generate_streams_text(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "--address", server.address, "--seed", "7", "--stop", "."]) == 0
    assert capsys.readouterr().out == "Hello world\n"
    assert server.requests[0].sampling.seed == 7 and list(server.requests[0].sampling.stop) == ["."]


def test_generate_reads_standard_input(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert main(["generate", "--address", server.address, "--n", "2"]) == 0
    assert capsys.readouterr().out == "[0] Hello world\n[1] Hello world\n"
    assert server.requests[0].text == "from a pipe"


def test_generate_prints_json(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "--json", "--address", server.address]) == 0
    assert json.loads(capsys.readouterr().out)["choices"][0]["text"] == "Hello world"


def test_chat_keeps_the_conversation(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n/undo\ntwo\nthree\n"))
    assert main(["chat", "--system", "Be brief.", "--address", server.address]) == 0
    assert capsys.readouterr().out == "Hello world\n" * 3
    roles = [(turn.role, turn.content) for turn in server.requests[-1].messages]
    assert roles == [("system", "Be brief."), ("user", "two"), ("assistant", "Hello world"), ("user", "three")]


def test_chat_goes_on_after_a_refused_message(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.failures = [bad_request("messages", "too long")]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert main(["chat", "--address", server.address]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Hello world\n" and "messages: too long" in captured.err
    assert len(server.requests[-1].messages) == 1


def test_status_draws_the_ranks(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--address", server.address]) == 0
    shown = capsys.readouterr().out
    assert "2-3" in shown and "[############........] 6/10" in shown and "max/mean 2.50" in shown
    assert main(["status", "--json", "--address", server.address]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"][0]["state"] == "serving"


def test_status_tells_of_the_fleet(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--address", server.address]) == 0
    shown = capsys.readouterr().out
    assert "replicas 0 serving  wanted 2 of 1 to 4" in shown and "3 sequences waiting\n" in shown
    assert "300 sequences, 3 waiting for up to 2.5 s, KV 50%\n" in shown and "replica 0 rank 1" in shown
    assert main(["status", "--json", "--address", server.address]) == 0
    fleet = json.loads(capsys.readouterr().out)["fleet"]
    assert fleet["replicas"] == [{"replica": 0, "state": "serving"}] and fleet["load"]["attainment"] is None


def test_events_are_lines_and_go_on_where_they_broke_off(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail_after_first_chunk = True
    assert main(["events", "--address", server.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert "replica 0" in lines[1] and "replica" not in lines[0] and lines[0].endswith("reason 1  wanted=1")
    assert [request.after_id for request in server.requests] == [0, 1]


def test_events_print_json_after_an_id(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", "--json", "--after", "2", "--follow", "--address", server.address]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(d["id"], d["replica"], d["numbers"]) for d in documents] == [
        (3, None, {"wanted": 3}),
        (4, 0, {"wanted": 4}),
    ]
    assert server.requests[0].follow
    assert main(["events", "--after", "-1", "--address", server.address]) == 2
    assert "--after: -1 is not allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (bad_request("prompt", "empty"), 2),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 5),
        (grpc.StatusCode.CANCELLED, 130),
    ],
)
def test_exit_codes(server: ScriptedServer, failure: object, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    server.failures = [failure]
    assert main(["generate", "Hi", "--json", "--address", server.address]) == code
    assert "error" in json.loads(capsys.readouterr().err)


def test_nothing_there_tells_how_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--address", "127.0.0.1:1"]) == 3
    assert "sigmoe serve" in capsys.readouterr().err


def test_every_command_has_help() -> None:
    for command in ("serve", "generate", "chat", "status", "events", "loadtest"):
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([command, "--help"])
        assert caught.value.code == 0


def test_ranges_and_expert_load(server: ScriptedServer) -> None:
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert ranges(()) == ""
    with Client(server.address) as client:
        assert expert_load(client.cluster().ranks) == ".--#  max/mean 2.50"
    assert expert_load(()) == "no tokens yet"
