"""Whether a folder holds exactly the tensors that config.json implies: from headers, before any weight is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby

import torch

from model.config import ModelConfig
from model.errors import CheckpointError
from model.safetensors_files import StoredTensor
from model.tensors import TensorKind, TensorSpec, expected_tensors

_PLAIN = (torch.bfloat16, torch.float16, torch.float32)
_SCALES = (torch.bfloat16, torch.float32)


def scale_name(name: str, config: ModelConfig) -> str:
    """Where the scales of a quantised weight are stored."""
    assert config.quantization is not None, f"{name}: no quantization_config"
    return name.removesuffix("weight") + config.quantization.scale_suffix


def check_tensors(stored: Mapping[str, StoredTensor], config: ModelConfig) -> dict[str, TensorSpec]:
    """All expected tensors by name. Raises CheckpointError naming the one that is missing, unknown or misshapen."""
    expected = {spec.name: spec for spec in expected_tensors(config)}
    scales = set()
    for name, spec in expected.items():
        if name not in stored:
            raise CheckpointError(f"{name}: missing; config.json implies it with shape {list(spec.shape)}")
        _check_one(spec, stored[name])
        if stored[name].dtype is torch.float8_e4m3fn:
            scales.add(_check_scale(spec, stored, config))
    for name in stored:
        if name not in expected and name not in scales:
            raise CheckpointError(f"{stored[name].file}: {name}: unknown tensor{_hint(name, config)}")
    return expected


def needed_tensors(
    stored: Mapping[str, StoredTensor], config: ModelConfig, experts: Collection[int]
) -> tuple[str, ...]:
    """What a rank with these experts reads, in the order in which a model is built. Raises as `check_tensors`.

    Modules come as the model has them, a layer's experts and the tensors of a module as they lie in the files.
    """
    local = set(experts)
    specs = [s for s in check_tensors(stored, config).values() if s.expert is None or s.expert in local]
    # The MTP layer comes last, after the head that it shares.
    specs.sort(key=lambda spec: spec.name.startswith(f"model.layers.{config.num_hidden_layers}."))
    return tuple(_in_order_of_reading(specs, stored, config))


def _in_order_of_reading(
    specs: Sequence[TensorSpec], stored: Mapping[str, StoredTensor], config: ModelConfig
) -> Iterator[str]:
    for _, together in groupby(specs, _owner):
        placed = []
        for spec in together:
            expert = stored[f"{spec.name.rsplit('.', 2)[0]}.gate_proj.weight"] if spec.expert is not None else None
            for part in parts_of(spec.name, stored, config):
                placed.append(((expert or stored[part]).place, stored[part].place, part))
        yield from (part for *_, part in sorted(placed))


def _owner(spec: TensorSpec) -> str:
    """What a tensor is one of: a layer's experts, or a module with its linears and norms."""
    return spec.name.rsplit(".", 2 if spec.expert is None else 3)[0]


def parts_of(name: str, stored: Mapping[str, StoredTensor], config: ModelConfig) -> tuple[str, ...]:
    """The tensor itself, and its scales where it is FP8."""
    is_fp8 = stored[name].dtype is torch.float8_e4m3fn
    return (name, scale_name(name, config)) if is_fp8 else (name,)


def _check_one(spec: TensorSpec, stored: StoredTensor) -> None:
    if stored.shape != spec.shape:
        raise CheckpointError(
            f"{stored.file}: {spec.name}: shape {list(stored.shape)}, config.json implies {list(spec.shape)}"
        )
    allowed = (*_PLAIN, torch.float8_e4m3fn) if spec.kind is TensorKind.LINEAR else _PLAIN
    if stored.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise CheckpointError(f"{stored.file}: {spec.name}: stored as {stored.dtype}; allowed here: {names}")


def _check_scale(spec: TensorSpec, stored: Mapping[str, StoredTensor], config: ModelConfig) -> str:
    if config.quantization is None:
        raise CheckpointError(f"{spec.name}: stored as FP8, but config.json has no quantization_config")
    name = scale_name(spec.name, config)
    if name not in stored:
        raise CheckpointError(f"{name}: missing; {spec.name} is FP8 and needs its scales")
    shape = config.quantization.scale_shape(spec.shape[0], spec.shape[1])
    if stored[name].shape != shape or stored[name].dtype not in _SCALES:
        found = f"{stored[name].dtype} {list(stored[name].shape)}"
        raise CheckpointError(f"{name}: {found}; bf16 or fp32 {list(shape)} is needed")
    return name


def _hint(name: str, config: ModelConfig) -> str:
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    if name.startswith(f"model.layers.{layers}."):
        return f"; config.json has num_hidden_layers {config.num_hidden_layers} and num_nextn_predict_layers " + str(
            config.num_nextn_predict_layers
        )
    return ""
