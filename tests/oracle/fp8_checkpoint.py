"""Quantise a tiny model into the two published FP8 formats (model-spec §4), and say what its weights then mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_checkpoint import save_tensors
from model.tensors import TensorKind, expected_tensors
from tests.oracle.tiny_models import TinyModel

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


def write_fp8(source: TinyModel, folder: Path, quantization: Mapping[str, Any]) -> tuple[TinyModel, dict[str, Tensor]]:
    """The FP8 model in `folder`, whose `tensors` are dequantised fp32; and the tensors as stored."""
    stored: dict[str, Tensor] = {}
    meant = dict(source.tensors)
    for spec in expected_tensors(source.config):
        tensor = source.tensors[spec.name]
        if spec.kind is not TensorKind.LINEAR or "lm_head" in spec.name or "eh_proj" in spec.name:
            stored[spec.name] = tensor if spec.kind is TensorKind.BIAS else tensor.to(torch.bfloat16)
            continue
        weight, scale, meant[spec.name] = (by_block if quantization is BLOCK else by_channel)(tensor)
        stored[spec.name] = weight
        suffix = "weight_scale_inv" if quantization is BLOCK else "weight_scale"
        stored[spec.name.removesuffix("weight") + suffix] = scale
    folder.mkdir(parents=True, exist_ok=True)
    fields = json.loads((source.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"quantization_config": quantization}))
    save_tensors(folder, stored)
    return TinyModel(type(source.config).from_dir(folder), folder, meant), stored


def by_block(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(e4m3 weight, fp32 scales per 128 x 128, what they mean) block by block."""
    rows, columns = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
    quantised = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    meant, scales = torch.empty_like(weight), torch.empty(rows, columns)
    for r in range(rows):
        for c in range(columns):
            part = (slice(r * 128, r * 128 + 128), slice(c * 128, c * 128 + 128))
            scales[r, c] = weight[part].abs().max().clamp(min=1e-4) / E4M3_MAX
            quantised[part] = (weight[part] / scales[r, c]).to(torch.float8_e4m3fn)
            meant[part] = quantised[part].float() * scales[r, c]
    return quantised, scales, meant


def by_channel(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(e4m3 weight, bf16 scales [N, 1], what they mean)."""
    scales = (weight.abs().amax(1, keepdim=True) / E4M3_MAX).to(torch.bfloat16)
    quantised = (weight / scales.float()).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return quantised, scales, quantised.float() * scales.float()
