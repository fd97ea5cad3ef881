"""A checkpoint onto the device: whether what arrives is what the files hold, and how near the bus's limit.

The first layers of the model, drawn on the device and written as safetensors to a temporary folder (TMPDIR), a file a
layer. What is read was written just before, so it lies in the host's memory: then the bus is the limit, not a disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.gpu.clock import as_in_a_rank
from benchmarks.gpu.plans import Plan
from benchmarks.gpu.random_model import RandomWeights, cut, tensor_bytes
from benchmarks.gpu.session import Figures, NoTime, Session
from benchmarks.loading import load, read, read_ahead
from model.config import ModelConfig
from model.landing import Fill, StagedLanding
from model.read_ahead import ReadAhead, landing_for, plan_for
from model.safetensors_files import INDEX, SafetensorsFiles
from model.tensor_check import needed_tensors, scale_name
from model.tensors import TensorSpec, expected_tensors, is_fp8

_NUM_LAYERS, _COMPARED_LAYERS = 8, 2
_NEEDED_S = 25.0
_DTYPE = torch.bfloat16
_BUS_BYTES, _TINY_BUS_BYTES = 1 << 30, 1 << 20


def measure_loading(session: Session, plan: Plan) -> Figures:
    """GB/s of a pinned copy, of the files' bytes onto the device, and of a whole load; and whether all arrives."""
    session.demand_time(0 if session.tiny else _NEEDED_S)
    num_layers = min(_NUM_LAYERS, ModelConfig.from_dict(plan.fields).num_hidden_layers)
    with tempfile.TemporaryDirectory(prefix="sigmoe-") as name, as_in_a_rank():
        folder = Path(name)
        num_bytes = _write(folder, plan.fields, num_layers, session)
        device = session.device
        found: Figures = {"layers": num_layers, "gb": num_bytes / 1e9, "pinned_copy_gb_s": _bus_gb_s(session)}
        shares: Figures = {}
        for key, run in {
            "read": partial(read, folder, plan_for(device)),
            "staged": partial(_stage, folder, device, shares),
            "load": partial(load, folder, device),
        }.items():
            seconds = min(_timed(session, run) for _ in range(1 if session.tiny else 2))
            found |= {f"{key}_s": seconds, f"{key}_gb_s": num_bytes / seconds / 1e9}
        found["readers"] = shares
        wrong = _differing(folder, session)
        return found | {"ok": not wrong, "tensors_that_differ": ", ".join(wrong[:3]) or "none"}


def _write(folder: Path, fields: dict[str, Any], num_layers: int, session: Session) -> int:
    """Write a checkpoint; returns its weights' bytes."""
    config = cut(fields, num_layers)
    needed_bytes = sum(tensor_bytes(spec, config, _DTYPE) for spec in expected_tensors(config))
    if shutil.disk_usage(folder).free < needed_bytes:
        raise NoTime(f"not run: {folder} has no room for {needed_bytes / 1e9:.0f} GB; TMPDIR names another folder")
    weights = RandomWeights(config, _DTYPE, session.device, session.seed)
    weight_map: dict[str, str] = {}
    num_bytes, written = 0, []
    with ThreadPoolExecutor() as writers:
        for file, specs in groupby(expected_tensors(config), _file_of):
            tensors: dict[str, torch.Tensor] = {}
            for spec in specs:
                if is_fp8(spec, config):
                    value, scale = weights.fp8(spec.name)
                    tensors[scale_name(spec.name, config)] = scale.cpu()
                else:
                    value = weights.plain(spec.name)
                tensors[spec.name] = value.cpu()
            weight_map |= dict.fromkeys(tensors, file)
            num_bytes += sum(tensor.nbytes for tensor in tensors.values())
            written.append(writers.submit(save_file, tensors, folder / file))
    for save in written:
        save.result()
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": num_layers}), encoding="utf-8")
    return num_bytes


def _file_of(spec: TensorSpec) -> str:
    """A file for each layer, and one for each tensor beside them."""
    is_layers = spec.name.startswith("model.layers.")
    return f"model-{spec.name.split('.')[2] if is_layers else spec.name}.safetensors"


def _bus_gb_s(session: Session) -> float:
    """What the bus takes: one large copy out of pinned memory."""
    size = _TINY_BUS_BYTES if session.tiny else _BUS_BYTES
    source = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=session.is_cuda)
    target = torch.empty(size, dtype=torch.uint8, device=session.device)
    return size / min(_timed(session, lambda: target.copy_(source, non_blocking=True)) for _ in range(5)) / 1e9


def _timed(session: Session, run: Callable[[], object]) -> float:
    """Seconds until all of it is on the device."""
    start_s = time.perf_counter()
    run()
    if session.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start_s


class _Timed(StagedLanding):
    """Knows how long its threads wrote, and how much of it they read."""

    def __init__(self, device: torch.device, num_buffers: int, buffer_bytes: int) -> None:
        super().__init__(device, num_buffers, buffer_bytes)
        self.write_s: list[float] = []
        self.fill_s: list[float] = []

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        """As every landing."""
        start_s = time.perf_counter()
        super().write(part, lambda view: self.fill_s.append(_seconds(fill, view)))
        self.write_s.append(time.perf_counter() - start_s)


def _seconds(fill: Fill, view: memoryview) -> float:
    start_s = time.perf_counter()
    fill(view)
    return time.perf_counter() - start_s


def _stage(folder: Path, device: torch.device, shares: Figures) -> None:
    """Every tensor onto the device; and what a reader's time went into: reads, or buffers and copies besides."""
    plan = plan_for(device)
    start_s = time.perf_counter()
    landing = _Timed(device, 2 * plan.num_readers, plan.piece_bytes)
    shares["buffers_s"] = time.perf_counter() - start_s
    read_ahead(folder, plan, landing)
    fill_s, write_s = sum(landing.fill_s), sum(landing.write_s)
    of_all = plan.num_readers * (time.perf_counter() - start_s)
    shares |= {"reads": len(landing.fill_s), "reading": fill_s / of_all, "copying": (write_s - fill_s) / of_all}


def _differing(folder: Path, session: Session) -> list[str]:
    """Tensors of the first layers that reached the device otherwise than they lie in the files.

    Copied at once, as a model is built: memory is read into again while the device may still have to copy it.
    """
    config, device = ModelConfig.from_dir(folder), session.device
    plan = plan_for(device)
    first = tuple(f"model.layers.{layer}." for layer in range(_COMPARED_LAYERS))
    with SafetensorsFiles(folder) as files:
        names = needed_tensors(files.tensors, config, range(config.num_experts))
        names = tuple(name for name in names if name.startswith(first))
        with ReadAhead(files, names, landing_for(device, plan), plan) as tensors:
            arrived = {name: tensors.take(name).clone().view(torch.uint8).view(-1) for name in names}
        wrong = []
        for file in sorted({files.tensors[name].file for name in names}):
            whole = torch.from_numpy(np.fromfile(file, dtype=np.uint8)).to(device)
            for name in names:
                at, size = files.tensors[name].offset, arrived[name].numel()
                if files.tensors[name].file == file and not torch.equal(arrived[name], whole[at : at + size]):
                    wrong.append(name)
    return wrong
