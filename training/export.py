"""Write a checkpoint as a Hugging Face folder: `python -m training.export --checkpoint F --data D --out models/…`."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from training.chat import BOS, CLS, EOS, GMASK, ROLE_END, SPECIAL_TOKENS
from training.checkpoint import load_checkpoint
from training.moe import DenseFfn
from training.net import Layer, Mtp, Net
from training.shape import Shape, hf_config
from training.tokenizer import load_tokenizer, save_tokenizer, token_id

HASHES = "SHA256SUMS"
SAMPLING = {"do_sample": True, "temperature": 0.3, "top_p": 0.8, "repetition_penalty": 1.05, "max_new_tokens": 200}


def checkpoint_tensors(net: Net) -> dict[str, Tensor]:
    """All tensors by their names in the checkpoint (model-spec §3): bf16, `expert_bias` fp32."""
    tensors: dict[str, Tensor] = {
        "model.word_embeddings.weight": net.embed,
        "model.norm.weight": net.norm,
        "lm_head.weight": net.head,
    }
    for number, layer in enumerate(net.layers):
        assert isinstance(layer, Layer)
        tensors |= _layer_tensors(layer, f"model.layers.{number}")
    tensors |= _mtp_tensors(net.mtp, f"model.layers.{len(net.layers)}")
    wanted = {n: torch.float32 if n.endswith("expert_bias") else torch.bfloat16 for n in tensors}
    return {name: t.detach().to(wanted[name]).contiguous().clone() for name, t in tensors.items()}


def _layer_tensors(layer: Layer, name: str) -> dict[str, Tensor]:
    attention = f"{name}.attention"
    tensors: dict[str, Tensor] = {
        f"{name}.input_layernorm.weight": layer.input_norm,
        f"{name}.post_attention_layernorm.weight": layer.post_norm,
        f"{attention}.query_key_value.weight": layer.attention.qkv,
        f"{attention}.query_layernorm.weight": layer.attention.query_norm,
        f"{attention}.key_layernorm.weight": layer.attention.key_norm,
        f"{attention}.dense.weight": layer.attention.out,
    }
    ffn = layer.ffn
    if isinstance(ffn, DenseFfn):
        return tensors | _ffn_tensors(ffn.gate_up, ffn.down, f"{name}.mlp")
    tensors[f"{name}.mlp.gate.weight"] = ffn.router
    tensors[f"{name}.mlp.gate.expert_bias"] = ffn.expert_bias
    tensors |= _ffn_tensors(ffn.shared.gate_up, ffn.shared.down, f"{name}.mlp.shared_experts")
    for e in range(len(ffn.down)):
        tensors |= _ffn_tensors(ffn.gate_up[e], ffn.down[e], f"{name}.mlp.experts.{e}")
    return tensors


def _ffn_tensors(gate_up: Tensor, down: Tensor, name: str) -> dict[str, Tensor]:
    return {
        f"{name}.gate_proj.weight": gate_up[0],
        f"{name}.up_proj.weight": gate_up[1],
        f"{name}.down_proj.weight": down,
    }


def _mtp_tensors(mtp: Mtp, name: str) -> dict[str, Tensor]:
    return _layer_tensors(mtp.layer, name) | {
        f"{name}.enorm.weight": mtp.embed_norm,
        f"{name}.hnorm.weight": mtp.hidden_norm,
        f"{name}.eh_proj.weight": mtp.eh_proj,
        f"{name}.final_layernorm.weight": mtp.final_norm,
    }


@torch.no_grad()
def load_tensors(net: Net, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `checkpoint_tensors`: fill the network; every name must be there and none left over."""
    targets: dict[str, Tensor] = {
        "model.word_embeddings.weight": net.embed,
        "model.norm.weight": net.norm,
        "lm_head.weight": net.head,
    }
    for number, layer in enumerate(net.layers):
        assert isinstance(layer, Layer)
        targets |= _layer_tensors(layer, f"model.layers.{number}")
    targets |= _mtp_tensors(net.mtp, f"model.layers.{len(net.layers)}")
    assert targets.keys() == tensors.keys(), sorted(targets.keys() ^ tensors.keys())[:4]
    for name, target in targets.items():
        target.copy_(tensors[name])  # expert slices are views of the stacks, so this fills the stacks


def load_exported(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Net:
    """The network of an exported folder."""
    config = json.loads((folder / "config.json").read_text())
    net = Net(Shape(**{k: config[k] for k in Shape.__dataclass_fields__}), dtype)
    load_tensors(net, load_file(folder / "model.safetensors"))
    for block in net.moe_blocks():
        assert block.expert_bias.dtype == torch.float32
    return net


def token_files(tokenizer: Tokenizer, shape: Shape) -> dict[str, dict[str, Any]]:
    """`config.json`, `generation_config.json` and `tokenizer_config.json`."""
    ids = {t: token_id(tokenizer, t) for t in SPECIAL_TOKENS}
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    special = {"bos_token_id": ids[BOS], "pad_token_id": ids[EOS]}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "config.json": hf_config(shape, pad_token_id=ids[EOS], eos_token_id=ids[ROLE_END], bos_token_id=ids[BOS]),
        "generation_config.json": {**special, "eos_token_id": [ids[EOS], ids[ROLE_END]], **SAMPLING},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": BOS,
            "eos_token": ROLE_END,
            "pad_token": EOS,
            "cls_token": CLS,
            "gmask_token": GMASK,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.max_position_embeddings,
            "added_tokens_decoder": {str(i): {"content": t, **flags} for t, i in ids.items()},
            "chat_template": template,
        },
    }


def write_hashes(folder: Path) -> None:
    """`SHA256SUMS` over every other file of the folder, in `sha256sum -c` form."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != HASHES)
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    (folder / HASHES).write_text("".join(lines))


def export(net: Net, tokenizer: Tokenizer, out: Path) -> None:
    """Write weights, tokenizer and configuration; README.md, written by hand, is left and hashed."""
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    save_file(checkpoint_tensors(net), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    save_tokenizer(tokenizer, out)
    for name, content in token_files(tokenizer, net.shape).items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_hashes(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a training checkpoint as a Hugging Face model folder.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a .pt file of training.train")
    parser.add_argument("--data", type=Path, required=True, help="the folder with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="the model folder")
    args = parser.parse_args(argv)
    tokenizer = load_tokenizer(args.data)
    net = Net(Shape(vocab_size=tokenizer.get_vocab_size()))
    net.load_state_dict(load_checkpoint(args.checkpoint)["net"])
    export(net, tokenizer, args.out)
    print(f"wrote {args.out}: {sum(p.stat().st_size for p in args.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
