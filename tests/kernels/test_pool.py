"""The thread pool under a hail of small jobs, and after a fork."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

from kernels import native
from kernels.linear import linear, pack_weight

STRESS = Path(__file__).with_name("pool_stress.c")


def test_every_item_of_every_job_runs_once(tmp_path: Path) -> None:
    program = tmp_path / "stress"
    sources = [str(STRESS), str(native.SOURCES / "pool.c")]
    command = ["gcc", "-O2", "-std=gnu11", "-pthread", f"-I{native.SOURCES}", *sources, "-o", str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_a_forked_child_computes_the_same() -> None:
    native.use("native", num_threads=2)
    packed, x = pack_weight(torch.randn(256, 128)), torch.randn(64, 128)
    truth = linear(x, packed)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(linear(x, packed), truth) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    native.use("auto")
