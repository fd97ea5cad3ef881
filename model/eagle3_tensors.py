"""The tensors of an EAGLE3 head: their names in either layout, their shapes, and the table of its vocabulary."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch

from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from model.eagle3_shapes import expected_shapes, required_names
from model.errors import CheckpointError
from model.safetensors_files import SafetensorsFiles

_LAYER_PREFIXES = ("midlayer.", "layers.0.")  # SGLang's family, vLLM's
_INTEGERS = ("d2t", "t2d")


def read_tensors(
    path: str | Path, config: Eagle3Config, target: ModelConfig, *, may_share_lm_head: bool = False
) -> dict[str, torch.Tensor]:
    """The weights under the names of `expected_shapes`, and `target_ids` [Vd] int64 where the vocabulary is a part.

    Raises CheckpointError that names the tensor at fault: a missing or unknown one, a wrong shape or dtype. Nothing is
    skipped: a head without its `fc` would draft nonsense and say nothing. Only `lm_head.weight` may stay away where
    the head has the model's whole vocabulary and may share its `lm_head`.
    """
    shapes = expected_shapes(config, target)
    with SafetensorsFiles(path) as files:
        names = _by_our_name(files.tensors)
        required = required_names(config, target)
        if may_share_lm_head and "d2t" not in required | names.keys() and config.hidden_size == target.hidden_size:
            required.discard("lm_head.weight")
        _check_names(names, shapes, required)
        for name, stored_name in names.items():
            stored = files.tensors[stored_name]
            if stored.shape != shapes[name]:
                raise CheckpointError(f"{stored_name}: shape {list(stored.shape)}, expected {list(shapes[name])}")
            is_index = name in _INTEGERS
            is_fp8 = stored.dtype.is_floating_point and stored.dtype.itemsize == 1
            if is_index == stored.dtype.is_floating_point or is_fp8:
                raise CheckpointError(f"{stored_name}: dtype {stored.dtype} is not supported here")
        tensors = {name: files.read(stored_name) for name, stored_name in names.items()}
    offsets, is_drafted = tensors.pop("d2t", None), tensors.pop("t2d", None)
    if offsets is None and is_drafted is not None and not is_drafted.bool().all():
        raise CheckpointError("t2d: leaves tokens out, and there is no d2t")
    if offsets is not None:
        tensors["target_ids"] = _target_ids(offsets, is_drafted, target.vocab_size)
    return tensors


def _by_our_name(stored: Iterable[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for stored_name in stored:
        prefix = next((p for p in _LAYER_PREFIXES if stored_name.startswith(p)), None)
        name = stored_name if prefix is None else "layer." + stored_name.removeprefix(prefix)
        if name in names:
            raise CheckpointError(f"{stored_name}: stands for the same weight as {names[name]}")
        names[name] = stored_name
    return names


def _check_names(names: Mapping[str, str], known: Container[str], required: set[str]) -> None:
    unknown = sorted(stored for name, stored in names.items() if name not in known)
    if unknown:
        raise CheckpointError(f"{unknown[0]}: not a tensor of an EAGLE3 head with this config.json")
    missing = sorted(required - names.keys())
    if missing:
        raise CheckpointError(f"{missing[0].replace('layer.', _LAYER_PREFIXES[0])}: missing from the EAGLE3 head")


def _target_ids(offsets: torch.Tensor, is_drafted: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """d2t holds what to add to a draft id to get the model's id."""
    ids = torch.arange(len(offsets)) + offsets.long()
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size or len(ids.unique()) != len(ids)):
        raise CheckpointError(f"d2t: leads to ids outside the vocabulary of {vocab_size}, or to one id twice")
    if is_drafted is not None and not torch.equal(is_drafted.bool().nonzero().flatten(), ids.sort().values):
        raise CheckpointError("t2d: names other tokens than d2t")
    return ids
