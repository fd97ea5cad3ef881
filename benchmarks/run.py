"""One command for the published table: the reference checkpoint in process, then through gRPC and Ray.

    python -m benchmarks.run [--model DIR] [--runs 3] [--out benchmarks/results/NAME.json]

Without --model the reference checkpoint (203 M parameters, bf16, random weights) is made in runs/reference.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.workload import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent

# Reference figures, measured elsewhere on two AVX-512 cores without matrix tiles: tokens per second, seconds, GB.
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "vLLM 0.32 (CPU build)": (80, 840, 2200, 97, None),
    "llama.cpp bf16": (272, 640, 1300, 1, 0.5),
}


def main() -> None:
    """Measure each way in a process of its own, write JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark.json")
    options = parser.parse_args()
    model = options.model or reference_checkpoint()
    runs = ["--model", str(model), "--runs", str(options.runs)]
    measured = {
        "in process": _measure("benchmarks.engine", runs),
        "in process, no matrix tiles": _measure("benchmarks.engine", [*runs, "--no-amx"]),
        "gRPC, Ray, 1 rank": _measure("benchmarks.serving", [*runs, "--ranks", "1"]),
        "gRPC, Ray, 1 rank, no matrix tiles": _measure(
            "benchmarks.serving", [*runs, "--ranks", "1", "--set", "engine.amx=false"]
        ),
        "gRPC, Ray, 2 ranks": _measure("benchmarks.serving", [*runs, "--ranks", "2"]),
    }
    report = {"machine": machine(), "model": model.name, "measured": measured}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    Console(width=120).print(table(measured, is_reference=options.model is None))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = "unknown"
    flags: set[str] = set()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            cpu = value.strip() if name.strip() == "model name" else cpu
            flags |= set(value.split()) if name.strip() == "flags" else set()
    shown = sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"})
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "features": shown,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def table(measured: dict[str, dict[str, Any]], *, is_reference: bool) -> Table:
    """Rows are ways to run, columns the workloads; medians in tokens per second."""
    shown = Table("", *(workload.name for workload in WORKLOADS), "start-up s", "peak GB")
    for name, result in measured.items():
        rates = [f"{rate['median']:.0f}" for rate in result["rates"]]
        peak = f"{result['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in result else ""
        shown.add_row(name, *rates, f"{result['start_s']:.1f}", peak)
    for name, figures in PUBLISHED.items() if is_reference else ():
        shown.add_row(f"{name}, published", *("" if figure is None else f"{figure:g}" for figure in figures))
    return shown


def reference_checkpoint() -> Path:
    """The checkpoint that speed is measured on, made where it is not there yet."""
    model = ROOT / "runs" / "reference"
    if not (model / "config.json").exists():
        tokenizer = ROOT / "models" / "sigmoe-demo"
        arguments = ["--out", str(model), "--config", "reference", "--dtype", "bf16", "--tokenizer", str(tokenizer)]
        subprocess.run([sys.executable, "-m", "benchmarks.random_checkpoint", *arguments], cwd=ROOT, check=True)
    return model


def _measure(module: str, arguments: list[str]) -> dict[str, Any]:
    print(f"{module} {' '.join(arguments[2:])} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
