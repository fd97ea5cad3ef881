"""Write a head as a folder that SGLang's family or vLLM's loads, and ours either way."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.draft.net import DraftNet
from training.draft.shape import draft_config
from training.draft.vocabulary import Vocabulary
from training.export import write_hashes

_PREFIX = {"sglang": "midlayer", "speculators": "layers.0"}


def head_tensors(net: DraftNet, vocabulary: Vocabulary, layout: str) -> dict[str, Tensor]:
    """All tensors by their published names: bf16, and the tables of the vocabulary. The embedding is the model's."""
    layer = _PREFIX[layout]
    weights: dict[str, Tensor] = {
        "fc.weight": net.fc,
        f"{layer}.input_layernorm.weight": net.embedding_norm,
        f"{layer}.hidden_norm.weight": net.hidden_norm,
        f"{layer}.post_attention_layernorm.weight": net.post_norm,
        **{f"{layer}.self_attn.{name}_proj.weight": getattr(net, name) for name in "qkvo"},
        **{f"{layer}.mlp.{name}_proj.weight": getattr(net, name) for name in ("gate", "up", "down")},
        "norm.weight": net.norm,
        "lm_head.weight": net.head,
    }
    tensors = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    is_drafted = torch.zeros(net.shape.target_vocab_size, dtype=torch.bool)
    is_drafted[vocabulary.ids] = True
    return tensors | {"d2t": vocabulary.ids - torch.arange(len(vocabulary.ids)), "t2d": is_drafted}


def export_head(net: DraftNet, vocabulary: Vocabulary, out: Path, layout: str = "sglang") -> None:
    """Write `config.json`, `model.safetensors` and their hashes."""
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    save_file(head_tensors(net, vocabulary, layout), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    (out / "config.json").write_text(json.dumps(draft_config(net.shape, layout), indent=2) + "\n", encoding="utf-8")
    write_hashes(out)
