"""Export → load, and the files that engines read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from training.export import checkpoint_tensors, export, load_exported, load_tensors, write_hashes
from training.net import Net, causal_mask
from training.shape import Shape


def test_exported_network_gives_the_same_logits(random_net: Net, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with torch.no_grad():
        for p in random_net.parameters():
            p.copy_(p.bfloat16())
    export(random_net, tokenizer, tmp_path)
    again = load_exported(tmp_path, torch.float32)
    tokens = torch.randint(0, 512, (1, 20))
    mask = causal_mask(torch.zeros_like(tokens))
    with torch.no_grad():
        hidden = random_net.hidden(tokens, mask)
        assert torch.equal(random_net.logits(hidden), again.logits(again.hidden(tokens, mask)))
        assert torch.equal(random_net.draft_hidden(tokens, hidden, mask), again.draft_hidden(tokens, hidden, mask))


def test_names_shapes_and_types_are_those_of_the_specification(random_net: Net, shape: Shape) -> None:
    tensors = checkpoint_tensors(random_net)
    layers, experts = shape.num_hidden_layers, shape.num_experts
    # 3 outside; 6 + 3 in the dense layer; 6 + 2 + 3 + 3·E in a MoE layer; 4 more in the MTP layer (model-spec §3)
    assert len(tensors) == 3 + 9 + layers * (11 + 3 * experts) + 4
    assert {n for n, t in tensors.items() if t.dtype == torch.float32} == {
        f"model.layers.{n}.mlp.gate.expert_bias" for n in range(1, layers + 1)
    }
    hidden, width = shape.hidden_size, shape.moe_intermediate_size
    assert tensors["model.layers.1.attention.query_key_value.weight"].shape == (8 * 32, hidden)
    assert tensors["model.layers.1.mlp.experts.15.gate_proj.weight"].shape == (width, hidden)
    assert tensors["model.layers.3.mlp.shared_experts.down_proj.weight"].shape == (hidden, width)
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == (shape.intermediate_size, hidden)
    assert tensors[f"model.layers.{layers}.eh_proj.weight"].shape == (hidden, 2 * hidden)


def test_missing_and_surplus_tensors_are_refused(random_net: Net) -> None:
    tensors = checkpoint_tensors(random_net)
    tensors.pop("model.norm.weight")
    with pytest.raises(AssertionError, match=r"model\.norm\.weight"):
        load_tensors(random_net, tensors)


def test_configuration_files(random_net: Net, tokenizer: Tokenizer, tmp_path: Path) -> None:
    export(random_net, tokenizer, tmp_path)
    config, generation, tokens = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("config", "generation_config", "tokenizer_config")
    )
    end, role_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|role_end|>")
    assert config["architectures"] == ["BailingMoeV2ForCausalLM"] and config["num_nextn_predict_layers"] == 1
    assert (config["pad_token_id"], config["eos_token_id"]) == (end, role_end)
    assert generation["eos_token_id"] == [end, role_end]
    assert tokens["chat_template"].count("detailed thinking off") == 1
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_hashes_cover_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "README.md").write_text("x")
    write_hashes(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text().splitlines()[1] == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a.txt"
    )
