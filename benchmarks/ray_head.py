"""A Ray of one node with its job server, for as long as it is looked at: what `ray job submit` talks to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from examples.demo import free_port

DEADLINE_S = 240.0  # of whatever is waited for
_ROOT = Path(__file__).resolve().parent.parent
_RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True, slots=True)
class RayHead:
    """A running one."""

    folder: Path
    url: str

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Ray's command line."""
        # Whoever runs this may have a token for clusters of his own; this one wants none.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = clean | {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": self.url, "PATH": path}
        return subprocess.run(
            [_RAY, *words], cwd=_ROOT, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    def processes(self) -> list[psutil.Process]:
        """All that belongs to it."""
        return [
            process for process in psutil.process_iter() if any(str(self.folder) in word for word in words(process))
        ]

    def submit(self, name: str, *command: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """Submit a job under this name, and wait for its end if asked."""
        options = ("--submission-id", name, *(() if wait else ("--no-wait",)), "--working-dir", ".")
        give_up = time.monotonic() + DEADLINE_S
        while True:
            done = self.ray("job", "submit", *options, "--", *command)
            # A head that has just started takes no jobs yet.
            if "No available agent" not in done.stderr or time.monotonic() > give_up:
                return done

    def leftovers(self) -> list[str]:
        """Actors and placement groups that live."""
        actors = [actor["class_name"] for actor in self._listed("actors") if actor["state"] != "DEAD"]
        groups = self._listed("placement-groups")
        return actors + [group["placement_group_id"] for group in groups if group["state"] != "REMOVED"]

    def _listed(self, kind: str) -> list[dict[str, str]]:
        done = self.ray("list", kind, "--format", "json", "--limit", "1000")
        if done.returncode:
            raise RuntimeError(f"ray list {kind}: {done.stdout}{done.stderr}")
        found: list[dict[str, str]] = json.loads(done.stdout)
        return found


@contextmanager
def ray_head() -> Iterator[RayHead]:
    """Start one on free ports. Leaves nothing behind."""
    folder = Path(f"/tmp/sigmoe-head-{os.getpid()}")  # short: it holds Unix sockets
    port, dashboard, agent = free_port(), free_port(), free_port()
    head = RayHead(folder, f"http://127.0.0.1:{dashboard}")
    options = ["--port", str(port), "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    options += ["--temp-dir", str(folder), "--num-cpus", "2", "--object-store-memory", str(100 * 2**20)]
    try:
        done = head.ray("start", "--head", *options, "--disable-usage-stats")
        if done.returncode:
            raise RuntimeError(f"ray start: {done.stdout}{done.stderr}")
        yield head
    finally:
        processes = head.processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def words(process: psutil.Process) -> list[str]:
    """A process's command line; nothing where it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def driver_of(output: Path) -> psutil.Process | None:
    """The process of the `sigmoe batch` that writes this output; None where none runs."""
    for process in psutil.process_iter():
        found = words(process)
        if str(output) in found and "job" not in found and any(word.endswith("/sigmoe") for word in found):
            return process
    return None
