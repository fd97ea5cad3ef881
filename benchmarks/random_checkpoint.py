"""Write a checkpoint of random weights in Hugging Face layout.

    python -m benchmarks.random_checkpoint --out DIR --config B|reference|file.json --dtype bf16|fp32 --seed 0

Norms are 1 + 0.2 N(0, 1), expert_bias 0.3 N(0, 1), matrices std N(0, 1), so that routing really depends on the bias
and on the expert groups (model-spec §10). Values are those of bf16 in either dtype: both checkpoints are one model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.shapes import shape_dict
from model.config import ModelConfig
from model.tensors import TensorKind, TensorSpec, expected_tensors

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def random_tensors(
    config: ModelConfig, dtype: torch.dtype, seed: int = 0, std: float = 0.08
) -> Iterator[tuple[TensorSpec, torch.Tensor]]:
    """Every tensor of a checkpoint of this shape, drawn from `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    for spec in expected_tensors(config):
        noise = torch.randn(spec.shape, generator=generator)
        if spec.kind is TensorKind.BIAS:
            yield spec, noise * 0.3
            continue
        values = 1 + 0.2 * noise if spec.kind is TensorKind.NORM else noise * std
        yield spec, values.to(torch.bfloat16).to(dtype)


def write_checkpoint(
    directory: Path, fields: dict[str, Any], dtype: torch.dtype, *, seed: int = 0, num_shards: int = 1
) -> Path:
    """Write config.json and the weights of the shape that `fields` (a config.json) describes; returns `directory`."""
    config = ModelConfig.from_dict(fields)
    directory.mkdir(parents=True, exist_ok=True)
    written = fields | {"torch_dtype": DTYPE_NAMES[dtype]}
    (directory / "config.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
    save_tensors(directory, {spec.name: tensor for spec, tensor in random_tensors(config, dtype, seed)}, num_shards)
    return directory


def save_tensors(directory: Path, tensors: dict[str, torch.Tensor], num_shards: int = 1) -> None:
    """Write tensors as one safetensors file, or as `num_shards` files with their index."""
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        mine = names[len(names) * shard // num_shards : len(names) * (shard + 1) // num_shards]
        save_file({name: tensors[name] for name in mine}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy what a tokenizer consists of from another checkpoint."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--config", default="reference", help="a shape's name (A to H, reference) or a config.json")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1, help="number of safetensors files")
    parser.add_argument("--tokenizer", type=Path, help="checkpoint folder whose tokenizer is copied")
    options = parser.parse_args()
    fields, dtype = shape_dict(options.config), DTYPES[options.dtype]
    write_checkpoint(options.out, fields, dtype, seed=options.seed, num_shards=options.shards)
    if options.tokenizer is not None:
        copy_tokenizer(options.tokenizer, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
