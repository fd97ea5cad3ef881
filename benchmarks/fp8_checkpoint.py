"""Quantise a model into the two published FP8 formats (model-spec §4), and say what its weights then mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_checkpoint import save_tensors
from model.config import ModelConfig
from model.quantization import FP8_BLOCK, BlockFp8
from model.tensors import TensorKind, TensorSpec, expected_tensors, is_fp8

E4M3_MAX = 448.0
BLOCK = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
_EIGHT_BIT = {"num_bits": 8, "type": "float", "symmetric": True}
CHANNEL = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head", "re:.*mlp.gate$"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _EIGHT_BIT | {"strategy": "channel", "dynamic": False},
            "input_activations": _EIGHT_BIT | {"strategy": "token", "dynamic": True},
        }
    },
}


def quantise(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors as the format that `config` names stores them, scales included; and what they mean, linears in fp32.

    What the format keeps is bf16, the routing bias as it was.
    """
    assert config.quantization is not None, "the configuration names no FP8 format"
    stored: dict[str, Tensor] = {}
    meant = dict(tensors)
    for spec in expected_tensors(config):
        tensor = tensors[spec.name]
        if not is_fp8(spec, config):
            stored[spec.name] = tensor if spec.kind is TensorKind.BIAS else tensor.to(torch.bfloat16)
            continue
        if isinstance(config.quantization, BlockFp8):
            weight, scale, meant[spec.name] = by_block(tensor.float(), powers_of_two=_has_round_scales(spec))
        else:
            weight, scale, meant[spec.name] = by_channel(tensor.float())
        stored[spec.name] = weight
        stored[spec.name.removesuffix("weight") + config.quantization.scale_suffix] = scale
    return stored, meant


def write_checkpoint(folder: Path, fields: Mapping[str, Any], stored: dict[str, Tensor]) -> None:
    """Write config.json with these fields, and the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")
    save_tensors(folder, stored)


def _has_round_scales(spec: TensorSpec) -> bool:
    """Whether the published block-wise quantiser rounds a weight's scales up to powers of two."""
    is_dense = spec.name.endswith("attention.dense.weight")
    return is_dense or (spec.expert is not None and "down_proj" not in spec.name)


def by_block(weight: Tensor, *, powers_of_two: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(e4m3 weight, fp32 scales per 128 x 128, what they mean) of an fp32 weight, block by block."""
    rows, columns = -(-weight.shape[0] // FP8_BLOCK), -(-weight.shape[1] // FP8_BLOCK)
    quantised = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    meant, scales = torch.empty_like(weight), torch.empty(rows, columns)
    for r in range(rows):
        for c in range(columns):
            part = tuple(slice(i * FP8_BLOCK, (i + 1) * FP8_BLOCK) for i in (r, c))
            scale = weight[part].abs().max().clamp(min=1e-4) / E4M3_MAX
            scales[r, c] = scale.log2().ceil().exp2() if powers_of_two else scale
            quantised[part] = (weight[part] / scales[r, c]).to(torch.float8_e4m3fn)
            meant[part] = quantised[part].float() * scales[r, c]
    return quantised, scales, meant


def by_channel(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(e4m3 weight, bf16 scales [N, 1], what they mean) of an fp32 weight."""
    smallest = torch.finfo(torch.bfloat16).tiny  # a row of zeros stays one
    scales = (weight.abs().amax(1, keepdim=True) / E4M3_MAX).clamp_min(smallest).to(torch.bfloat16)
    quantised = (weight / scales.float()).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return quantised, scales, quantised.float() * scales.float()
