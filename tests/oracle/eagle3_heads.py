"""Random EAGLE3 heads on disk, in either published layout, loaded and as their formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kernels.paged_attention import KVLayer, allocate_kv_layer
from model.config import ModelConfig
from model.eagle3 import Eagle3Head, load_eagle3
from model.eagle3_config import Eagle3Config
from model.eagle3_shapes import expected_shapes, required_names
from tests.oracle.eagle3_reference import Eagle3Reference
from tests.oracle.tiny_models import BLOCK_SIZE, CPU, TinyModel

EMBEDDING = "model.word_embeddings.weight"
SWITCHES = ("norm_before_fc", "fc_norm", "norm_output", "norm_before_residual")


def flat_config(target: ModelConfig, **changes: Any) -> dict[str, Any]:
    """A config.json as SGLang's family writes it."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": target.hidden_size,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": 60,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, target.num_hidden_layers - 2]},
    } | changes


def nested_config(flat: dict[str, Any]) -> dict[str, Any]:
    """The same as speculators write it."""
    outer = (*SWITCHES, "draft_vocab_size", "tie_word_embeddings", "eagle_config", "architectures")
    ids = flat["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    return {
        "architectures": ["Eagle3Speculator"],
        "model_type": "speculators",
        "speculators_model_type": "eagle3",
        "speculators_config": {"algorithm": "eagle3"},
        "transformer_layer_config": {name: value for name, value in flat.items() if name not in outer},
        "eagle_aux_hidden_state_layer_ids": [i + 1 for i in ids],
        **{name: flat[name] for name in (*SWITCHES, "draft_vocab_size", "tie_word_embeddings") if name in flat},
    }


def random_weights(config: Eagle3Config, target: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """fp32 weights under our names, without what is optional but the vocabulary's table."""
    draw = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=draw) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in expected_shapes(config, target).items()
        if name in required_names(config, target) - {"d2t"}
    }
    if config.draft_vocab_size < target.vocab_size:
        ids = torch.randperm(target.vocab_size, generator=draw)[: config.draft_vocab_size].sort().values
        weights["d2t"] = ids - torch.arange(len(ids))
        weights["t2d"] = torch.zeros(target.vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    return weights


def write_head(folder: Path, raw: dict[str, Any], weights: Mapping[str, Tensor], prefix: str = "midlayer.") -> Path:
    """A head's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    named = {name.replace("layer.", prefix, 1) if name.startswith("layer.") else name: t for name, t in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, folder / "model.safetensors")
    return folder


def load(folder: Path, world: TinyModel, dtype: torch.dtype = torch.float32) -> Eagle3Head:
    """A head beside the model's own embedding."""
    return load_eagle3(folder, world.config, world.tensors[EMBEDDING].to(dtype), dtype, CPU)


def head_and_reference(
    world: TinyModel, folder: Path, layout: str = "flat", **changes: Any
) -> tuple[Eagle3Head, Eagle3Reference]:
    """The same random head twice: through its files, and from its weights."""
    raw = flat_config(world.config, **changes)
    config = Eagle3Config.from_dict(raw, world.config)
    weights = random_weights(config, world.config)
    if layout == "flat":
        write_head(folder, raw, weights)
    else:
        write_head(folder, nested_config(raw), weights, "layers.0.")
    return load(folder, world), Eagle3Reference(config, weights, world.tensors[EMBEDDING])


def draft_kv(head: Eagle3Head, dtype: torch.dtype = torch.float32, num_blocks: int = 32) -> KVLayer:
    """An empty KV layer for a head."""
    return allocate_kv_layer(num_blocks, BLOCK_SIZE, head.num_kv_heads, head.head_dim, dtype, CPU)
