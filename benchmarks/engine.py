"""Measure the in-process engine: no Ray, no gRPC, one process.

    python -m benchmarks.engine --model DIR [--dtype bfloat16|float32] [--runs 3] [--no-amx] [--kernels torch]

Start-up counts from the start of the interpreter to the first token; peak memory is the process's own.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks.workload import WORKLOADS, Rate, Workload
from engine.build import build_engine
from engine.config import EngineConfig, KernelChoice, Precision
from engine.engine import Engine
from kernels import native
from model.config import ModelConfig
from scheduler.request import Request, SamplingParams


def run_once(engine: Engine, workload: Workload, prompts: list[tuple[int, ...]], run: int) -> float:
    """Submit all prompts, step until every one has ended; returns seconds."""
    sampling = SamplingParams(max_tokens=workload.output_tokens, temperature=0.0, ignore_eos=True)
    start_s = time.perf_counter()
    for index, prompt in enumerate(prompts):
        engine.add(Request(request_id=f"{workload.name}/{run}/{index}", prompt=prompt, sampling=sampling))
    num_tokens = 0
    while engine.has_work:
        num_tokens += sum(len(delta.token_ids) for delta in engine.step())
    elapsed_s = time.perf_counter() - start_s
    expected = workload.output_tokens * len(prompts)
    assert num_tokens == expected, f"{workload.name}: {num_tokens} tokens instead of {expected}"
    return elapsed_s


def measure(engine: Engine, vocab_size: int, runs: int) -> list[Rate]:
    """Every workload, after one warm-up run of each."""
    rates = []
    for workload in WORKLOADS:
        elapsed_s = [run_once(engine, workload, workload.prompts(vocab_size, seed), seed) for seed in range(runs + 1)]
        rates.append(Rate.of(workload, elapsed_s[1:]))
    return rates


def main() -> None:
    """Command line; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", choices=[p.value for p in Precision], default=Precision.BF16.value)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kernels", choices=[k.value for k in KernelChoice], default=KernelChoice.AUTO.value)
    parser.add_argument("--no-amx", action="store_true", help="do without the CPU's matrix tiles")
    options = parser.parse_args()
    config = EngineConfig(
        model_dir=str(options.model),
        precision=Precision(options.dtype),
        kernels=KernelChoice(options.kernels),
        use_amx=not options.no_amx,
        max_context=4096,
        max_sequences=32,
    )
    engine = build_engine(config)
    vocab_size = ModelConfig.from_dir(config.model_dir).vocab_size
    run_once(engine, Workload(name="first", num_requests=1, prompt_tokens=16, output_tokens=1), [(1,) * 16], 0)
    start_s = time.time() - psutil.Process().create_time()
    rates = measure(engine, vocab_size, options.runs)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "kernels": native.backend(),
                "dtype": options.dtype,
                "start_s": start_s,
                "peak_bytes": peak_bytes,
                "rates": [asdict(rate) for rate in rates],
            }
        )
    )


if __name__ == "__main__":
    main()
