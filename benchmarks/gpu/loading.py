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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.gpu.clock import as_in_a_rank
from benchmarks.gpu.plans import Plan
from benchmarks.gpu.random_model import RandomWeights, cut
from benchmarks.gpu.session import Figures, NoTime, Session
from benchmarks.loading import load, read_ahead
from model.config import ModelConfig
from model.read_ahead import ReadAhead, landing_for, plan_for
from model.safetensors_files import INDEX, SafetensorsFiles
from model.tensor_check import needed_tensors, scale_name
from model.tensors import expected_tensors, is_fp8

_NUM_LAYERS = 8
_NEEDED_S = 45.0
_DTYPE = torch.bfloat16
_BUS_BYTES, _TINY_BUS_BYTES = 1 << 30, 1 << 20


def measure_loading(session: Session, plan: Plan) -> Figures:
    """GB/s of a pinned copy, of the files' bytes onto the device, and of a whole load; each tensor compared once."""
    session.demand_time(0 if session.tiny else _NEEDED_S)
    num_layers = min(_NUM_LAYERS, ModelConfig.from_dict(plan.fields).num_hidden_layers)
    with tempfile.TemporaryDirectory(prefix="sigmoe-") as name, as_in_a_rank():
        folder = Path(name)
        num_bytes = _write(folder, plan.fields, num_layers, session)
        device, num_readers = session.device, plan_for(session.device).num_readers
        found: Figures = {"layers": num_layers, "gb": num_bytes / 1e9, "pinned_copy_gb_s": _bus_gb_s(session)}
        for key, run in {
            "read": partial(read_ahead, folder, num_readers),
            "staged": partial(read_ahead, folder, num_readers, device),
            "load": partial(load, folder, device),
        }.items():
            seconds = min(_timed(session, run) for _ in range(1 if session.tiny else 2))
            found |= {f"{key}_s": seconds, f"{key}_gb_s": num_bytes / seconds / 1e9}
        wrong = _differing(folder, session)
        return found | {"ok": not wrong, "tensors_that_differ": ", ".join(wrong[:3]) or "none"}


def _write(folder: Path, fields: dict[str, Any], num_layers: int, session: Session) -> int:
    """Write a checkpoint; returns its weights' bytes."""
    config = cut(fields, num_layers)
    weights = RandomWeights(config, _DTYPE, session.device, session.seed)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for spec in expected_tensors(config):
        layer = spec.name.split(".")[2] if spec.name.startswith("model.layers.") else "ends"
        tensors = files.setdefault(f"model-{layer}.safetensors", {})
        if is_fp8(spec, config):
            value, scale = weights.fp8(spec.name)
            tensors[scale_name(spec.name, config)] = scale.cpu()
        else:
            value = weights.plain(spec.name)
        tensors[spec.name] = value.cpu()
    num_bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    if shutil.disk_usage(folder).free < num_bytes:
        raise NoTime(f"not run: {folder} has no room for {num_bytes / 1e9:.0f} GB; TMPDIR names another folder")
    with ThreadPoolExecutor() as writers:
        list(writers.map(lambda file: save_file(files[file], folder / file), files))
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": num_layers}), encoding="utf-8")
    return num_bytes


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


def _differing(folder: Path, session: Session) -> list[str]:
    """Tensors that reached the device otherwise than a plain read finds them in the files."""
    config, device = ModelConfig.from_dir(folder), session.device
    plan = plan_for(device)
    wrong = []
    with SafetensorsFiles(folder) as files:
        names = needed_tensors(files.tensors, config, range(config.num_experts))
        with ReadAhead(files, names, landing_for(device, plan), plan) as tensors:
            for name in names:
                arrived, stored = tensors.take(name), files.read(name).to(device)
                if not torch.equal(arrived.view(torch.uint8), stored.view(torch.uint8)):
                    wrong.append(name)
    return wrong
