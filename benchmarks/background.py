"""Measure what a batch costs interactive users: time to first token without one, beside one, and beside a loud one.

    python -m benchmarks.background [--model DIR] [--ranks 1] [--calls 40] [--out benchmarks/results/NAME.json]

A server with 32 places; a caller who asks for 16 tokens twice a second; beside it `sigmoe batch` with 16 prompt and 128
output tokens a line and 64 requests under way, once in the background (its default) and once with the users' priority.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.run import ROOT, machine, reference_checkpoint
from benchmarks.serving import server
from sigmoe import AsyncClient, Client, Sampling

PLACES = 32
PERIOD_S = 0.5


async def first_tokens(address: str, count: int, seed: int) -> dict[str, float]:
    """Seconds to the first token, and tokens per second after it, of calls that come twice a second."""
    draw = random.Random(seed)
    sampling = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
    async with AsyncClient(address) as client:
        vocab_size = (await client.model()).vocab_size

        async def one() -> tuple[float, float]:
            prompt = [draw.randrange(vocab_size) for _ in range(16)]
            start_s = time.perf_counter()
            first_s = 0.0
            async for _ in client.generate(prompt, sampling):
                first_s = first_s or time.perf_counter() - start_s
            return first_s, 15 / (time.perf_counter() - start_s - first_s)

        calls = []
        for _ in range(count):
            calls.append(asyncio.create_task(one()))
            await asyncio.sleep(PERIOD_S)
        times, rates = zip(*await asyncio.gather(*calls), strict=True)
    ordered = sorted(times)
    return {
        "median_s": statistics.median(ordered),
        "p95_s": ordered[int(0.95 * (len(ordered) - 1))],
        "worst_s": ordered[-1],
        "tokens_per_s": statistics.median(rates),
    }


@contextmanager
def batch(address: str, priority: int) -> Iterator[None]:
    """A batch beside, for as long as it is looked at; it has filled the places when this begins."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        with source.open("w") as file:
            for index in range(20_000):
                draw = random.Random(index)
                line = {"prompt": [draw.randrange(1000) for _ in range(16)], "max_tokens": 128, "ignore_eos": True}
                file.write(json.dumps(line) + "\n")
        command = [sys.executable, "-m", "sigmoe.cli", "batch", "--input", str(source), "--target", address]
        command += ["--output", str(Path(folder) / "out.jsonl"), "--priority", str(priority), "--concurrency", "64"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            with Client(address) as client:
                while sum(rank.waiting_sequences for rank in client.cluster().ranks) < PLACES // 2:
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def tokens_made(address: str) -> int:
    """By all ranks, since the start."""
    with Client(address) as client:
        return sum(rank.generated_tokens for rank in client.cluster().ranks)


def main() -> None:
    """Measure the three and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = options.model or reference_checkpoint()
    report: dict[str, Any] = {"machine": machine(), "model": model.name, "ranks": options.ranks, "places": PLACES}
    with server(model, options.ranks, ("--set", f"engine.max_sequences={PLACES}", "--max-context", "512")) as started:
        address = started[0]
        asyncio.run(first_tokens(address, 4, 0))
        report["alone"] = asyncio.run(first_tokens(address, options.calls, 1))
        for name, priority in (("beside a batch", -100), ("beside a batch of the same priority", 0)):
            with batch(address, priority):
                before, start_s = tokens_made(address), time.perf_counter()
                report[name] = asyncio.run(first_tokens(address, options.calls, 2 - priority))
                report[name]["all_tokens_per_s"] = (tokens_made(address) - before) / (time.perf_counter() - start_s)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
