"""`sigmoe serve` without Ray: what goes well, and every way in which starting can fail."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sigmoe import Sampling
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.cluster.executor_contract import tiny_config
from tests.cluster.serve_command import DEADLINE_S, ROOT, Server, run_to_its_end, serving

LOCAL = ("--executor", "local", "--ranks", "1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_config().model_dir, tmp_path / "model"))
    write_tokenizer_files(folder)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_and_stops_when_told_to(model: Path, number: signal.Signals) -> None:
    with serving(model, *LOCAL) as server:
        with server.client() as client:
            usage = [chunk.usage for chunk in client.generate([3, 4, 5], Sampling(max_tokens=4, ignore_eos=True))][-1]
        assert usage is not None and usage.output_tokens == 4
        assert server.stop(number) == 0
        out, err = server.end()
        assert f"serving on 127.0.0.1:{server.port}" in out and "stopping" in out
        assert not err


def test_json_is_one_document_a_line(model: Path) -> None:
    with serving(model, *LOCAL, "--json") as server:
        assert server.stop() == 0
        documents = [json.loads(line) for line in server.end()[0].splitlines()]
    assert documents[0]["event"] == "serving"
    assert documents[0]["address"] == f"127.0.0.1:{server.port}"


def test_calls_under_way_are_ended_when_the_server_stops(model: Path) -> None:
    with serving(model, *LOCAL, "--set", "gateway.drain_s=0") as server, server.client() as client:
        stream = iter(client.generate([3, 4, 5], Sampling(max_tokens=1500, ignore_eos=True)))
        next(stream)
        assert server.stop() == 0


def test_a_port_in_use_is_named_before_anything_starts(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_to_its_end(model, "--port", port)  # over Ray, which must not be started for this
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"gateway.port: {port} on 127.0.0.1 is in use" in done.stderr
    assert not done.stdout


def _spoil(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_a_missing_or_corrupt_checkpoint_is_one_clear_message(model: Path, file: str, is_missing: bool) -> None:
    if is_missing:
        (model / file).unlink()
    else:
        _spoil(model / file)
    done = run_to_its_end(model, *LOCAL, "--port", "0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert file in done.stderr or str(model) in done.stderr


def test_no_memory_for_the_kv_cache_is_one_clear_message(model: Path) -> None:
    done = run_to_its_end(model, *LOCAL, "--port", "0", "--set", "engine.kv_cache_size=900TiB")
    assert done.returncode == 1
    assert "KV cache needs" in done.stderr and done.stderr.count("\n") == 1


def test_wrong_settings_are_the_user_s_mistake(model: Path) -> None:
    done = run_to_its_end(model, "--set", "engine.blocks=3")
    assert done.returncode == 2
    assert done.stderr.startswith("sigmoe: engine.blocks: unknown key; known are")


def test_an_interrupt_while_loading_leaves_nothing(model: Path) -> None:
    server = Server(model, "--executor", "local", "--ranks", "2")
    assert server.process.stdout is not None
    assert server.process.stdout.readline().startswith("starting 2 ranks on this machine")
    assert server.process.stdout.readline().startswith("rank 0: starting")
    assert server.stop() == 0
    server.end()
    assert not server.orphans()


def test_the_dry_run_starts_nothing_and_adds_up(model: Path) -> None:
    done = run_to_its_end(model, "--dry-run", "--json", "--ranks", "3")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert [len(rank["experts"]) for rank in plan["ranks"]] == [3, 3, 2]


def test_from_the_bare_client_it_says_what_to_install(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sigmoe", tmp_path / "sigmoe", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys\n"
        f"sys.path[:] = [folder for folder in sys.path if folder != {str(ROOT)!r}]\n"  # an editable installation
        "from sigmoe.cli import main\n"
        "sys.exit(main(['serve', '--model', 'm']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 1
    assert "pip install -e '.[server]'" in done.stderr and done.stderr.count("\n") == 1
