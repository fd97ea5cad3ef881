"""How fast a checkpoint is read and loaded: tensor after tensor, and ahead of time by several threads.

    python -m benchmarks.loading --model DIR [--device cuda] [--readers 1,2,4] [--repeats 3] [--out FILE]

"read" takes every tensor and drops it; "staged" sends it to the device through the ring of buffers that a GPU has, on
the CPU from memory to memory; "load" makes the model. Cold: the kernel was told to forget the files
(POSIX_FADV_DONTNEED), which empties its cache but not the disk's own, nor a virtual machine's host's. Warm: they were
read just before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.run import machine
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.landing import DirectLanding, Landing, StagedLanding
from model.read_ahead import ReadAhead, ReadPlan, plan_for
from model.safetensors_files import SafetensorsFiles
from model.tensor_check import needed_tensors
from router.local import LocalDispatcher
from router.placement import Placement


def forget(folder: Path) -> None:
    """Let the kernel drop the files of a folder from its cache."""
    os.sync()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_one_by_one(folder: Path) -> None:
    """Every tensor after the other, by this thread."""
    config = ModelConfig.from_dir(folder)
    with SafetensorsFiles(folder) as files:
        for name in needed_tensors(files.tensors, config, range(config.num_experts)):
            files.read(name)


def read_ahead(folder: Path, plan: ReadPlan, landing: Landing) -> None:
    """Every tensor, taken as it comes, and dropped."""
    config = ModelConfig.from_dir(folder)
    with SafetensorsFiles(folder) as files:
        names = needed_tensors(files.tensors, config, range(config.num_experts))
        with ReadAhead(files, names, landing, plan) as tensors:
            for name in names:
                tensors.take(name)


def read(folder: Path, plan: ReadPlan) -> None:
    """Into fresh memory of the host."""
    read_ahead(folder, plan, DirectLanding())


def stage(folder: Path, plan: ReadPlan, device: torch.device) -> None:
    """Onto a device, through buffers, on the CPU too."""
    read_ahead(folder, plan, StagedLanding(device, 2 * plan.num_readers, plan.piece_bytes))


def load(folder: Path, device: torch.device) -> None:
    """The model as an engine loads it here."""
    config = ModelConfig.from_dir(folder)
    target = Target(dtype=torch.bfloat16, device=device, placement=Placement.even(config.num_experts, 1), rank=0)
    load_model(folder, config, target=target, dispatcher=LocalDispatcher(config.num_experts, device))


def ways(folder: Path, readers: list[int], device: torch.device) -> dict[str, Callable[[], None]]:
    """What is measured, by name."""
    found: dict[str, Callable[[], None]] = {"read one by one": partial(read_one_by_one, folder)}
    for number in readers:
        plan = replace(plan_for(device), num_readers=number)
        found[f"read ahead, {number}"] = partial(read, folder, plan)
        found[f"staged, {number}"] = partial(stage, folder, plan, device)
    return found | {"load": partial(load, folder, device)}


def measured(folder: Path, run: Callable[[], None], repeats: int) -> dict[str, float]:
    """Median seconds from a cold and from a warm cache."""
    seconds: dict[str, list[float]] = {"cold_s": [], "warm_s": []}
    for _ in range(repeats):
        forget(folder)
        for found in seconds.values():
            start_s = time.perf_counter()
            run()
            found.append(time.perf_counter() - start_s)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    """Command line; prints a line each, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--readers", default="1,2,4", help="numbers of threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the engine does; a team of threads for each small copy would be what is measured
    size = sum(file.stat().st_size for file in options.model.glob("*.safetensors"))
    report: dict[str, object] = {"machine": machine(), "bytes": size, "ways": {}}
    found: dict[str, dict[str, float]] = {}
    for name, run in ways(
        options.model, [int(number) for number in options.readers.split(",")], options.device
    ).items():
        found[name] = measured(options.model, run, options.repeats)
        rates = [f"{key[:4]} {value:6.2f} s {size / value / 1e9:5.2f} GB/s" for key, value in found[name].items()]
        print(f"{name:16s} {', '.join(rates)}", flush=True)
    report["ways"] = found
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
