"""How much memory a rank needs and how much there is."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import psutil
import torch

from engine.config import EngineConfig
from model.config import ModelConfig
from model.kv_cache import kv_bytes_per_block
from model.tensors import TensorKind, TensorSpec, expected_tensors, is_fp8

_CGROUP = Path("/sys/fs/cgroup")
_FP32_KINDS = (TensorKind.ROUTER, TensorKind.BIAS)


class OutOfMemory(Exception):
    """The memory asked for is not there."""


def weight_bytes(
    model: ModelConfig, dtype: torch.dtype, local_experts: Collection[int], *, keeps_fp8: bool = False
) -> int:
    """Bytes of the weights of a rank that holds these experts, as they lie in memory.

    `keeps_fp8`: the rank's kernels read FP8 weights as they are stored.
    """
    local = set(local_experts)
    loaded = sum(
        _fp8_bytes(spec, model)
        if keeps_fp8 and is_fp8(spec, model)
        else math.prod(spec.shape) * (4 if spec.kind in _FP32_KINDS else dtype.itemsize)
        for spec in expected_tensors(model)
        if spec.expert is None or spec.expert in local
    )
    # A tied head is laid out a second time, for the way in which a head is read.
    second_head = model.vocab_size * model.hidden_size * dtype.itemsize if model.tie_word_embeddings else 0
    return loaded + second_head


def _fp8_bytes(spec: TensorSpec, model: ModelConfig) -> int:
    assert model.quantization is not None, f"{spec.name}: no quantization_config"
    return math.prod(spec.shape) + 4 * math.prod(model.quantization.scale_shape(*spec.shape))


def available_bytes(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Free bytes of a device; of the CPU what the machine and the container's limit (cgroup v2) both allow."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit = _number(cgroup / "memory.max")
    used = _number(cgroup / "memory.current")
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def demand_room_for_weights(needed_bytes: int, free_bytes: int) -> None:
    """Raise OutOfMemory unless the weights fit."""
    if needed_bytes > free_bytes:
        raise OutOfMemory(
            f"this rank's weights need {_readable(needed_bytes)}, {_readable(free_bytes)} are free; "
            "use more ranks, or bfloat16"
        )


def kv_blocks(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype, free_bytes: int, draft_bytes_per_block: int = 0
) -> int:
    """How many blocks of `dtype` the KV cache gets, of which a draft model has `draft_bytes_per_block`.

    Raises OutOfMemory when they do not fit, or hold no single token.
    """
    per_block = kv_bytes_per_block(model, config.block_size, dtype) + draft_bytes_per_block
    context = min(config.max_context or model.max_context, model.max_context)
    if config.num_blocks is not None:
        return _fitting(config.num_blocks, per_block, free_bytes)
    if config.kv_bytes is not None:
        return _fitting(config.kv_bytes // per_block, per_block, free_bytes)
    useful = config.max_sequences * -(-context // config.block_size)
    # The ranks of a group on one machine share what is free there.
    share = free_bytes if config.device.startswith("cuda") else free_bytes // config.group_size
    return _fitting(min(useful, int(share * config.kv_fraction) // per_block), per_block, free_bytes)


def _fitting(num_blocks: int, per_block: int, free_bytes: int) -> int:
    needed = max(num_blocks, 1) * per_block
    if num_blocks < 1 or needed > free_bytes:
        raise OutOfMemory(
            f"the KV cache needs {_readable(needed)} for {max(num_blocks, 1)} blocks of {_readable(per_block)}, "
            f"{_readable(free_bytes)} are free; lower max_sequences, max_context or the KV cache's size"
        )
    return num_blocks


def _number(file: Path) -> int | None:
    """The integer in a file; None where there is no such file or no limit ("max")."""
    if not file.is_file():
        return None
    text = file.read_text(encoding="ascii").strip()
    return int(text) if text.isdigit() else None


def _readable(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.2f} MiB"
