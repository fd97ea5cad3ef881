"""`sigmoe serve` as users run it: a process, its output, and whatever it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

from examples.demo import free_port
from sigmoe import Client, RetryPolicy, SigmoeError

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0  # of whatever a test waits for: only a broken program gets there
T = TypeVar("T")


def command(model: Path, *options: str) -> list[str]:
    tiny = ("--dtype", "float32", "--set", "engine.kv_cache_size=1MiB", "--set", "engine.threads_per_rank=1")
    return [sys.executable, "-m", "sigmoe.cli", "serve", "--model", str(model), *tiny, *options]


class Server:
    """One running `sigmoe serve`."""

    def __init__(self, model: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """`environment` replaces this process's."""
        self.port = free_port()
        self.process = subprocess.Popen(
            command(model, "--port", str(self.port), *options),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._seen: dict[int, psutil.Process] = {}

    def client(self) -> Client:
        return Client(f"127.0.0.1:{self.port}", timeout_s=DEADLINE_S, retry=RetryPolicy(max_attempts=1))

    def wait_until(self, ask: Callable[[Client], T]) -> T:
        """What `ask` returns once the server answers it with something true."""
        give_up = time.monotonic() + DEADLINE_S
        with self.client() as client:
            while True:
                self.note_children()
                assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.end()}"
                try:
                    if answer := ask(client):
                        return answer
                except SigmoeError:
                    assert time.monotonic() < give_up, "no answer in time"
                time.sleep(0.05)

    def note_children(self) -> None:
        """Remember every process there is by now, to see whether it ends."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self._seen[child.pid] = child

    def child(self, name: str) -> psutil.Process:
        """One process whose title holds `name`."""
        self.note_children()
        titles: dict[int, str] = {}
        for child in self._seen.values():
            with suppress(psutil.NoSuchProcess):  # it has ended, or is about to
                titles[child.pid] = "".join(child.cmdline()[:1])
                if name in titles[child.pid]:
                    return child
        raise AssertionError(f"no process {name!r} among {titles}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal; returns the exit code."""
        self.note_children()
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def end(self) -> tuple[str, str]:
        """Output and errors of a server that has ended or will."""
        return self.process.communicate(timeout=DEADLINE_S)

    def orphans(self) -> list[str]:
        """Processes that outlive their server, after time to end."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=DEADLINE_S)
        return [f"{process.pid} {process.name()}" for process in alive]


@contextmanager
def serving(model: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server that answers; ended by force if the test left it running."""
    server = Server(model, *options, environment=environment)
    try:
        server.wait_until(lambda client: client.model())
        yield server
    finally:
        if server.process.poll() is None:
            os.kill(server.process.pid, signal.SIGINT)
        server.end()


def run_to_its_end(model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    return subprocess.run(
        command(model, *options), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
