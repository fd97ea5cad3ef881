"""The kernel tests once more, on what the library is for CPUs with fewer instructions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import pytest
from kernels import native
native.FLAGS = tuple(flag for flag in native.FLAGS if not flag.startswith("-march")) + ("-march=" + sys.argv[1],)
chosen = "native and not amx and not build and not older and not pool"
sys.exit(pytest.main(["tests/kernels", "-q", "-x", "-k", chosen, "-p", "no:cacheprovider"]))
"""


@pytest.mark.parametrize("target", ["x86-64-v3", "skylake-avx512"])
def test_kernels_hold_on(target: str) -> None:
    command = [sys.executable, "-c", SCRIPT, target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
