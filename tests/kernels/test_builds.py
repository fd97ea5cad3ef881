"""Every Triton kernel compiles for sm_90 as it claims to, and as it did when the table was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = ROOT / "benchmarks" / "results" / "hopper-builds.json"
REWRITE = "python -m benchmarks.hopper_builds --write"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `benchmarks.hopper_builds` says of every build, made by a process in which Triton compiles."""
    out = tmp_path_factory.mktemp("builds") / "table.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.hopper_builds", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert out.exists(), f"{' '.join(command)}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    table: dict[str, Any] = json.loads(out.read_text())
    return table


def test_every_build_keeps_its_claims(compiled: dict[str, Any]) -> None:
    """No spills, shared memory within a block's, wgmma in matrix kernels."""
    assert compiled["builds"] and not compiled["faults"], "\n".join(compiled["faults"])


def test_the_table_is_what_the_compiler_makes(compiled: dict[str, Any]) -> None:
    kept = json.loads(TABLE.read_text())
    assert set(kept["builds"]) == set(compiled["builds"]), f"builds came or went: {REWRITE}"
    if kept["triton"] != compiled["triton"]:
        pytest.skip(f"the table is of Triton {kept['triton']}, this is {compiled['triton']}")
    changed = {n: (kept["builds"][n], now) for n, now in compiled["builds"].items() if kept["builds"][n] != now}
    assert not changed, f"{REWRITE}, and say why in the commit: {changed}"


def test_every_kernel_is_built() -> None:
    """A kernel is a jitted function called `..._kernel`; its folder's `builds.py` names it."""
    for folder in sorted(path.parent for path in (ROOT / "kernels").glob("*/triton_kernel.py")):
        lines = [line for path in sorted(folder.glob("*.py")) for line in path.read_text().splitlines()]
        names = [line[4:].split("(")[0] for line in lines if line.startswith("def ")]
        kernels = [name for name in names if name.endswith("_kernel")]
        listed = (folder / "builds.py").read_text()
        assert kernels, f"{folder.name}: no function is called ..._kernel"
        missing = [name for name in kernels if f"kernel={name}" not in listed]
        assert not missing, f"kernels/{folder.name}/builds.py lacks {missing}"
