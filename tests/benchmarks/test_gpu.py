"""The run on a device, on tiny shapes: without a GPU it is Triton's interpreter that walks the road."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.plans import full_plan
from benchmarks.gpu.random_model import cut, layers_that_fit, weight_sizes
from benchmarks.gpu.session import Figures, Session
from benchmarks.gpu.table import lines
from engine.memory import weight_bytes
from kernels.builds import kernel_folders

ROOT = Path(__file__).resolve().parents[2]
PHASES = ["bandwidth", "checks", "collectives", "model", "decode", "breakdown", "verify", "steps", "prefill"]
PHASES += ["long_context", "batch_invariant", "release", "loading", "kernels", "answers"]


def command(out: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--seed", "0", "--out", str(out)]
    return subprocess.run(run, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_phase_ends_well_and_every_kernel_is_right(tmp_path: Path) -> None:
    done = command(tmp_path / "device.json", {"OMP_NUM_THREADS": "1"})
    report: dict[str, Any] = json.loads((tmp_path / "device.json").read_text())
    assert list(report["phases"]) == PHASES
    measured, timed = report["phases"]["checks"], report["phases"]["kernels"]
    for folder in kernel_folders():
        checks = measured[folder.name]["checks"]
        assert checks, folder.name
        assert not [check for check in checks if not check["error"] <= check["bound"]], folder.name
        assert all(case["us"] > 0 for case in timed[folder.name]["cases"]), folder.name
    assert not {name: phase for name, phase in report["phases"].items() if not phase["ok"]}
    assert (tmp_path / "device.txt").read_text() in done.stdout
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    long = report["phases"]["long_context"]
    assert long["fp8"]["kv_bytes"] * 2 == long["bf16"]["kv_bytes"]
    for part in ("a row among others", "a row of a chunk"):
        assert report["phases"]["batch_invariant"][part]["same_bits"] == "True"
    assert report["phases"]["decode"]["batch 2"]["experts_read"] >= 2
    steps = [part for name, part in report["phases"]["steps"].items() if name.endswith("rows")]
    assert {part["rows_of_each"] for part in steps} == {1, 4}
    assert all(part["rounds"]["ms"] > 0 and part["ahead"]["ms"] > 0 for part in steps)
    assert report["phases"]["model"]["layers"] == report["phases"]["model"]["layers_of_the_model"]
    if not torch.cuda.is_available():
        assert "meaningless" in report["clock"] and "graph" not in report["phases"]["decode"]["batch 1"]


def session(out: Path, left_s: float) -> Session:
    made = Session(out=out, device=torch.device("cpu"), tiny=True, seed=0, deadline_s=time.monotonic() + left_s)
    made.describe()
    return made


def broken() -> Figures:
    raise ValueError("no such kernel")


def test_a_phase_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    run = session(tmp_path / "device.json", 60)
    assert not run.phase("first", broken)
    assert not run.phase("parts", lambda: run.each({"bad": broken, "good": lambda: {"figure": 7}}))
    assert run.phase("last", lambda: {"figure": 8})
    phases = json.loads((tmp_path / "device.json").read_text())["phases"]
    assert phases["first"]["error"] == "ValueError: no such kernel" and not phases["first"]["ok"]
    assert phases["parts"]["good"]["figure"] == 7 and not phases["parts"]["bad"]["ok"]
    assert phases["last"]["figure"] == 8
    assert "ValueError: no such kernel" in "\n".join(lines(run.report))


def test_nothing_begins_when_the_time_is_up(tmp_path: Path) -> None:
    run = session(tmp_path / "device.json", 0)
    assert not run.phase("late", lambda: {"figure": 7})
    assert "figure" not in run.report["phases"]["late"] and "not run" in run.report["phases"]["late"]["error"]


def test_a_model_is_cut_to_the_layers_that_fit() -> None:
    """Bytes by who reads them sum to what the engine reckons; a layer more than fits would not have fitted."""
    fields, dtype, kv_tokens = full_plan().fields, torch.bfloat16, 1000
    sizes = {}
    for num_layers in (9, 10):
        config = cut(fields, num_layers)
        weights = sum(weight_sizes(config, dtype).values())
        assert weights == weight_bytes(config, dtype, range(config.num_experts), keeps_fp8=True)
        kv_bytes = 2 * config.num_key_value_heads * config.head_dim * 2 * num_layers * kv_tokens
        sizes[num_layers] = weights + kv_bytes
    assert layers_that_fit(fields, dtype, sizes[10], kv_tokens) == 10
    assert layers_that_fit(fields, dtype, sizes[10] - 1, kv_tokens) == 9
    assert layers_that_fit(fields, dtype, 10**12, kv_tokens) == 32
    with pytest.raises(MemoryError, match="no 2 layers"):
        layers_that_fit(fields, dtype, 10**9, kv_tokens)
