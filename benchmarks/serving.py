"""Measure a server through gRPC: `sigmoe serve` with its Ray ranks, and this process as the client.

python -m benchmarks.serving --model DIR --ranks 2 [--runs 3] [--executor ray|local]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.workload import WORKLOADS, Rate, Workload
from sigmoe import AsyncClient, Client, Sampling, Unavailable

START_TIMEOUT_S = 300.0


@contextmanager
def server(model: Path, ranks: int, extra: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Run `sigmoe serve` on a free port; yields its address and the seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sigmoe.cli", "serve", "--model", str(model), "--ranks", str(ranks)]
    start_s = time.perf_counter()
    process = subprocess.Popen([*command, "--port", str(port), *extra], stdout=subprocess.DEVNULL)
    try:
        _wait_until_ready(f"127.0.0.1:{port}", process)
        yield f"127.0.0.1:{port}", time.perf_counter() - start_s
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with Client(address, timeout_s=5) as client:
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {process.returncode}")
            try:
                client.model()
                return
            except Unavailable:
                time.sleep(0.1)
    raise RuntimeError("the server did not answer in time")


async def run_once(client: AsyncClient, workload: Workload, prompts: list[tuple[int, ...]]) -> float:
    """Send all prompts at once, stream every answer to its end; returns seconds."""
    sampling = Sampling(max_tokens=workload.output_tokens, temperature=0.0, repetition_penalty=1.0, ignore_eos=True)

    async def one(prompt: tuple[int, ...]) -> int:
        count = 0
        async for chunk in client.generate(prompt, sampling):
            count = chunk.usage.output_tokens if chunk.usage else count
        return count

    start_s = time.perf_counter()
    counts = await asyncio.gather(*(one(prompt) for prompt in prompts))
    elapsed_s = time.perf_counter() - start_s
    assert counts == [workload.output_tokens] * len(prompts), f"{workload.name}: outputs of {counts} tokens"
    return elapsed_s


async def measure(address: str, runs: int) -> list[Rate]:
    """Every workload, after one warm-up run of each."""
    rates = []
    async with AsyncClient(address) as client:
        vocab_size = (await client.model()).vocab_size
        for workload in WORKLOADS:
            elapsed_s = [
                await run_once(client, workload, workload.prompts(vocab_size, seed)) for seed in range(runs + 1)
            ]
            rates.append(Rate.of(workload, elapsed_s[1:]))
    return rates


def main() -> None:
    """Command line; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    options, extra = parser.parse_known_args()
    with server(options.model, options.ranks, tuple(extra)) as (address, start_s):
        rates = asyncio.run(measure(address, options.runs))
    print(json.dumps({"ranks": options.ranks, "start_s": start_s, "rates": [asdict(rate) for rate in rates]}))


if __name__ == "__main__":
    main()
