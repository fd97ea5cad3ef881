"""A Ray of our own that does not come up, made up: only the library's entry is replaced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.executor import GroupStartError
from cluster.ray_session import LOCAL, RaySession


class Starts:
    """`ray.init` that fails with each of these messages in turn, a daemon of its running, then succeeds."""

    def __init__(self, *messages: str) -> None:
        self.messages = list(messages)
        self.folders: list[Path] = []
        self.daemons: list[int] = []

    def __call__(self, *, _temp_dir: str, **_: Any) -> None:
        self.folders.append(Path(_temp_dir))
        if not self.messages:
            return
        daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", _temp_dir])
        self.daemons.append(daemon.pid)
        raise Exception(self.messages.pop(0))


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    made = Starts()
    monkeypatch.setattr(ray, "init", made)
    return made


def test_a_slow_first_start_is_tried_again(starts: Starts) -> None:
    starts.messages = ["The current node timed out during startup. This could happen because ..."]
    session = RaySession(LOCAL)
    session.start(num_cpus=1)
    assert len(starts.folders) == 2
    assert not psutil.pid_exists(starts.daemons[0]), "the first start's daemon lives on"
    assert [folder.exists() for folder in starts.folders] == [False, True]
    session.stop()
    assert not starts.folders[1].exists()


@pytest.mark.parametrize(
    ("messages", "num_starts"),
    [(["timed out during startup", "timed out during startup"], 2), (["no shared memory"], 1)],
    ids=["slow twice", "another fault"],
)
def test_what_does_not_come_up_is_one_clear_error(starts: Starts, messages: list[str], num_starts: int) -> None:
    starts.messages = list(messages)
    with pytest.raises(GroupStartError, match=f"cluster.address: 'local': {messages[0]}"):
        RaySession(LOCAL).start(num_cpus=1)
    assert len(starts.folders) == num_starts
    assert not any(map(psutil.pid_exists, starts.daemons))
    assert not any(folder.exists() for folder in starts.folders)
