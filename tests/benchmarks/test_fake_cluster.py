"""The cluster of made-up machines, run by hand: however it is told to end, nothing of it stays."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_leaves_nothing_behind(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "benchmarks.fake_cluster"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        printed = ""
        while "ends the cluster" not in printed:
            line = process.stdout.readline()
            assert line, "it ended before it was told to"
            printed += line
        token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", printed)
        assert token is not None
        folder = Path(token[1]).parent
        assert folder.exists()
        process.send_signal(number)
        assert process.wait(60) == 0
    assert not folder.exists()
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in commands if any(str(folder) in word for word in words)]
