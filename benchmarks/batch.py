"""Measure `sigmoe batch` with ranks of its own against the engine's closed loop at the same concurrency.

    python -m benchmarks.batch [--model DIR] [--concurrency 32] [--requests 640] [--runs 3] [--threads N]
        [--executor ray|local] [--out benchmarks/results/NAME.json]

Both answer the same requests: 16 prompt tokens, 64 to 192 output tokens, one after the other as places come free. The
engine's figure is that of one process without Ray, gRPC, tokenizer or files. They take turns, so that both meet the
same machine. --threads leaves cores to gateway, job and Ray, as a GPU does. Without --model the reference checkpoint
(203 M parameters, bf16, random weights) is made.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.run import ROOT, machine, reference_checkpoint
from engine.build import build_engine
from engine.config import EngineConfig
from model.config import ModelConfig
from scheduler.request import Request, SamplingParams

MAX_CONTEXT = 512
PROMPT_TOKENS = 16


def requests(count: int, vocab_size: int, seed: int) -> Iterator[tuple[list[int], int]]:
    """(prompt, output tokens) of each request; other prompts for other seeds, the same lengths."""
    lengths = random.Random(0)
    draw = random.Random(seed)
    for _ in range(count):
        yield [draw.randrange(vocab_size) for _ in range(PROMPT_TOKENS)], lengths.randrange(64, 193)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLoad:
    """What both answer, and with what."""

    model: Path
    concurrency: int
    num_requests: int
    num_threads: int | None  # of the engine; None: all cores


def closed_loop(load: BatchLoad, seed: int) -> float:
    """Tokens per second of the engine alone, in this process, with `concurrency` sequences at all times."""
    config = EngineConfig(
        model_dir=str(load.model),
        max_context=MAX_CONTEXT,
        max_sequences=load.concurrency,
        num_threads=load.num_threads,
    )
    engine = build_engine(config)
    waiting = enumerate(requests(load.num_requests, ModelConfig.from_dir(load.model).vocab_size, seed))
    num_active = num_tokens = 0
    start_s = time.perf_counter()
    while True:
        while num_active < load.concurrency and (following := next(waiting, None)):
            index, (prompt, max_tokens) = following
            sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
            engine.add(Request(request_id=str(index), prompt=tuple(prompt), sampling=sampling))
            num_active += 1
        if not num_active:
            return num_tokens / (time.perf_counter() - start_s)
        for delta in engine.step():
            num_tokens += len(delta.token_ids)
            num_active -= delta.finish_reason is not None


def batch(load: BatchLoad, seed: int, executor: str) -> dict[str, Any]:
    """The summary of a batch of the same requests."""
    vocab_size = ModelConfig.from_dir(load.model).vocab_size
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with source.open("w") as file:
            for index, (prompt, max_tokens) in enumerate(requests(load.num_requests, vocab_size, seed)):
                line = {"custom_id": str(index), "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
                file.write(json.dumps(line | {"repetition_penalty": 1.0, "ignore_eos": True}) + "\n")
        command = [sys.executable, "-m", "sigmoe.cli", "batch", "--input", str(source), "--output", str(out)]
        command += ["--model", str(load.model), "--ranks", "1", "--set", f"engine.max_sequences={load.concurrency}"]
        command += ["--set", f"model.max_context={MAX_CONTEXT}", "--set", f"cluster.executor={executor}"]
        command += [] if load.num_threads is None else ["--set", f"engine.threads_per_rank={load.num_threads}"]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert (result["answered"], result["failed"]) == (load.num_requests, 0), result
        return result


def main() -> None:
    """Take turns, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--executor", choices=("ray", "local"), default="ray")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = options.model or reference_checkpoint()
    load = BatchLoad(
        model=model,
        concurrency=options.concurrency,
        num_requests=options.requests,
        num_threads=options.threads,
    )
    engine, batches = [], []
    for run in range(options.runs):
        batches.append(batch(load, 2 * run + 1, options.executor))
        engine.append(closed_loop(load, 2 * run))
        print(f"run {run}: engine {engine[-1]:.0f}, batch {batches[-1]['tokens_per_s']:.0f} tokens/s", file=sys.stderr)
    rates = [entry["tokens_per_s"] for entry in batches]
    report = {
        "machine": machine(),
        "model": model.name,
        "concurrency": options.concurrency,
        "requests": options.requests,
        "threads": options.threads,
        "executor": options.executor,
        "engine_tokens_per_s": engine,
        "batch_tokens_per_s": rates,
        "ratio_of_medians": statistics.median(rates) / statistics.median(engine),
        "batches": batches,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
