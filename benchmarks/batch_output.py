"""Measure how a batch whose lines are all answered reads its input and writes its output: seconds, and peak memory.

    python -m benchmarks.batch_output [--lines 20000 200000] [--answer-bytes 1024] [--out benchmarks/results/NAME.json]

The answers lie in a journal before the job starts, so nothing is asked; a server without a model only says its name.
Each number of lines is done by a process without Ray and by a job of a Ray on this machine, where Ray Data reads and
writes what is more than 16 MiB.
Peak memory is the resident set (VmHWM), pages shared with other processes included, of the job's process and of the
largest of Ray's workers. Ends with 1 where the two outputs differ.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ray_head import DEADLINE_S, RayHead, driver_of, ray_head, words
from benchmarks.run import ROOT, machine
from cluster.batch_input import BatchInput, numbered
from cluster.batch_journal import Journal
from cluster.batch_output import BatchOutput, Order
from examples.demo import free_port

_WINDOW = 512  # answers come about in the order of the lines


def write_input(source: Path, num_lines: int) -> None:
    """Short prompts."""
    with source.open("w") as file:
        for index in range(num_lines):
            line = {"custom_id": f"q{index}", "prompt": f"Question {index}: what is asthma?", "max_tokens": 100}
            file.write(json.dumps(line) + "\n")


def write_journal(source: Path, out: Path, answer_bytes: int) -> None:
    """An answer to each line, as if a job had been killed before it wrote its output."""
    found = BatchInput.find(str(source))
    output = BatchOutput.of(str(out), found, Order.INPUT)
    journal = Journal.open(output.journal, output.manifest(found))
    draw, waiting = random.Random(0), []
    for line in numbered(found.rows()):
        waiting.append((line.index, line.crc))
        if len(waiting) == _WINDOW:
            _write(journal, waiting.pop(draw.randrange(_WINDOW)), answer_bytes)
    for entry in waiting:
        _write(journal, entry, answer_bytes)
    journal.close()


def _write(journal: Journal, entry: tuple[int, int], answer_bytes: int) -> None:
    index, crc = entry
    line = {"custom_id": f"q{index}", "response": {"body": {"text": ""}}, "error": None}
    line["response"] = {"body": {"text": "x" * (answer_bytes - len(json.dumps(line)))}}
    journal.write(index, crc, json.dumps(line), is_error=False)


class Watch:
    """Peak resident sets, by name, of processes while they live."""

    def __init__(self) -> None:
        self.peak_mb: dict[str, float] = {}

    def see(self, name: str, process: psutil.Process | None) -> None:
        """Look once."""
        try:
            status = Path(f"/proc/{process.pid}/status").read_text() if process is not None else ""
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), int(line.split()[1]) / 1024)


def follow(watch: Watch, look: Callable[[], None], is_over: Callable[[], bool]) -> None:
    """Look until it is over."""
    give_up = time.monotonic() + DEADLINE_S
    while not is_over():
        if time.monotonic() > give_up:
            raise RuntimeError("the job does not end")
        look()
        time.sleep(0.02)


def alone(command: list[str]) -> dict[str, Any]:
    """In a process without Ray."""
    watch = Watch()
    with subprocess.Popen(
        [sys.executable, "-m", "sigmoe.cli", *command[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        follow(watch, lambda: watch.see("job", psutil.Process(process.pid)), lambda: process.poll() is not None)
        assert process.stdout is not None
        return result(process.stdout.read(), watch)


def in_ray(head: RayHead, name: str, command: list[str], out: Path) -> dict[str, Any]:
    """As a job."""
    watch = Watch()

    def look() -> None:
        watch.see("job", driver_of(out))
        for process in psutil.process_iter():
            if any(word.startswith("ray::") for word in words(process)):
                watch.see(f"worker {process.pid}", process)

    head.submit(name, *command, wait=False)
    follow(watch, look, lambda: '{"event"' in head.ray("job", "logs", name).stdout)
    workers = [mb for process, mb in watch.peak_mb.items() if process != "job"]
    watch.peak_mb = {"job": watch.peak_mb["job"], "largest worker": max(workers)}
    return result(head.ray("job", "logs", name).stdout, watch)


def result(printed: str, watch: Watch) -> dict[str, Any]:
    """What is of interest in a summary."""
    summary = json.loads(next(line for line in printed.splitlines() if line.startswith('{"event"')))
    by = "Ray Data" if "by Ray Data" in printed else "the job"
    seconds = {"reading_s": summary["answering_s"], "writing_s": summary["writing_s"], "seconds": summary["seconds"]}
    return {"written_by": by} | seconds | {"peak_mb": {name: round(mb) for name, mb in watch.peak_mb.items()}}


def main() -> int:
    """Do all, compare, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--answer-bytes", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    port, runs = free_port(), list[dict[str, Any]]()
    command = [sys.executable, "-m", "benchmarks.null_server", "--port", str(port)]
    with tempfile.TemporaryDirectory() as place, ray_head() as head, subprocess.Popen(command, cwd=ROOT) as server:
        for num_lines in options.lines:
            source = Path(place) / f"in-{num_lines}.jsonl"
            write_input(source, num_lines)
            calm, ray = (Path(place) / f"{name}-{num_lines}.jsonl" for name in ("alone", "ray"))
            for out in (calm, ray):
                write_journal(source, out, options.answer_bytes)
                job = ["sigmoe", "batch", "--input", str(source), "--output", str(out)]
                job += ["--target", f"127.0.0.1:{port}"]
                found = alone(job) if out is calm else in_ray(head, f"of-{num_lines}", job, out)
                runs.append({"lines": num_lines, "output_mb": round(out.stat().st_size / 1e6)} | found)
                print(json.dumps(runs[-1]), file=sys.stderr)
            runs[-1]["is_equal"] = filecmp.cmp(calm, ray, shallow=False)
        server.terminate()
    report = {"machine": machine(), "answer_bytes": options.answer_bytes, "runs": runs}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0 if all(run.get("is_equal", True) for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
