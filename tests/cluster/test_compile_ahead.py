"""`sigmoe compile`: what is asked for, what is said, exit codes. What is compiled: tests/engine/test_precompile.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.shapes import shape_dict
from cluster import compile_ahead
from engine.config import EngineConfig
from engine.precompile.job import Report
from sigmoe.cli import main

Asked = list[tuple[EngineConfig, tuple[int, int], int | None]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a config.json, and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(shape_dict("C")))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is to be compiled; nothing is."""
    calls: Asked = []

    def compile_kernels(
        config: EngineConfig, capability: tuple[int, int], on_report: Callable[[Report], None], processes: int | None
    ) -> Report:
        calls.append((config, capability, processes))
        on_report(Report(num_all=5))
        return Report(num_done=5, num_all=5, num_found=2)

    monkeypatch.setattr(compile_ahead, "compile_kernels", compile_kernels)
    return calls


def test_what_the_ranks_of_a_group_launch(model: Path, asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    """Of those with equally many experts one."""
    options = ["--ranks", "3", "--set", "engine.block_size=32", "--target", "sm_100", "--processes", "4"]
    assert main(["compile", "--model", str(model), *options]) == 0
    sizes = shape_dict("C")["num_experts"] % 3
    assert sizes, "three ranks would have equally many"
    assert [config.rank for config, *_ in asked] == [0, sizes]
    assert all(config.block_size == 32 and config.group_size == 3 for config, *_ in asked)
    assert {call[1:] for call in asked} == {((10, 0), 4)}
    assert capsys.readouterr().out == "10 kernels, 4 of them were in Triton's cache before\n"


def test_json(model: Path, asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--model", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"kernels": 5, "in_cache_before": 2}
    assert asked[0][1:] == ((9, 0), None)


def test_what_fails_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = Report(num_done=5, num_all=5, failed=("split_kernel",), error="RuntimeError: no ptxas")
    monkeypatch.setattr(compile_ahead, "compile_kernels", lambda *_: failed)
    assert main(["compile", "--model", str(model)]) == 1
    assert "no ptxas (split_kernel)" in capsys.readouterr().err


def test_wrong_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--model", str(model / "nowhere")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["compile", "--model", str(model), "--processes", "0"]) == 2
    with pytest.raises(SystemExit):
        main(["compile", "--model", str(model), "--target", "sm_80"])
