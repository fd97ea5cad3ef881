"""The first run: start a cluster with the shipped model, ask it a question, show what goes on, stop it.

Run it with `make demo`.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from sigmoe import Client, Sampling, SigmoeError, Unavailable, Usage
from sigmoe.cli.status import picture

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "What is asthma?"
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0


def main() -> int:
    """Serve, ask, stop; the exit code is 0 only if every part went well."""
    console = Console(highlight=False)
    port = free_port()
    command = [sys.executable, "-m", "sigmoe.cli", "serve", "examples/demo.yaml", "--port", str(port)]
    console.rule(f"starting: sigmoe serve examples/demo.yaml --port {port}")
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        with Client(f"127.0.0.1:{port}", timeout_s=120.0) as client:
            _wait_until_serving(client, server)
            _ask(client, console)
            console.print(picture(client.cluster()))
    except SigmoeError as error:
        console.print(f"the demo failed: {error}")
        return 1
    finally:
        console.rule("stopping")
        code = _stop(server)
    console.print(f"stopped, exit code {code}")
    return code


def free_port() -> int:
    """Outside the range that systems and Ray hand out by themselves, so that nobody else takes it meanwhile."""
    for port in random.sample(range(20_000, 30_000), k=100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port between 20,000 and 30,000")


def _wait_until_serving(client: Client, server: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise Unavailable(f"`sigmoe serve` ended with exit code {server.returncode}")
        try:
            client.model()
            return
        except Unavailable:
            time.sleep(0.2)
    raise Unavailable(f"the server was not ready after {START_TIMEOUT_S:.0f} s")


def _ask(client: Client, console: Console) -> None:
    console.rule("a demonstration model; not medical advice")
    console.print(f"[bold]you>[/bold] {QUESTION}")
    console.print("[bold]model>[/bold] ", end="")
    start_s = time.monotonic()
    first_s = None
    usage = None
    for chunk in client.chat([{"role": "user", "content": QUESTION}], Sampling(temperature=0.0, max_tokens=160)):
        first_s = first_s or time.monotonic()
        console.out(chunk.text, end="", highlight=False)
        usage = chunk.usage or usage
    elapsed_s = time.monotonic() - start_s
    if usage is None or first_s is None:
        raise SigmoeError("the answer ended without a result")
    console.print(
        f"\n[dim]{usage.output_tokens} tokens in {elapsed_s:.2f} s: {usage.output_tokens / elapsed_s:.0f} tokens/s, "
        f"first after {1000 * (first_s - start_s):.0f} ms{_drafted(usage)}[/dim]"
    )


def _drafted(usage: Usage) -> str:
    if usage.drafts is None or usage.drafts.tau is None:
        return ""
    return f"; {usage.drafts.tau:.2f} tokens a step with drafts"


def _stop(server: subprocess.Popen[bytes]) -> int:
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
    try:
        return server.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


if __name__ == "__main__":
    raise SystemExit(main())
