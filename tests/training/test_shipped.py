"""The model folder in the repository: whole, small enough, loadable, and saying what its card says."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import training
from training.chat import prompt
from training.evaluate import PROBES, answer_greedily
from training.export import HASHES, load_exported, token_files
from training.shape import PRESETS, hf_config
from training.tokenizer import load_tokenizer

FOLDER = Path(training.__file__).parents[1] / "models" / "sigmoe-demo"
MAX_BYTES = 40_000_000


def listed() -> dict[str, str]:
    lines = (FOLDER / HASHES).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


@pytest.mark.parametrize("name", sorted(listed()))
def test_hash(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == listed()[name], f"{name} is not the listed file"


def test_every_engine_file_is_listed() -> None:
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wanted | {"README.md"} <= listed().keys()


def test_size_fits_the_repository() -> None:
    size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
    assert size <= MAX_BYTES, f"{size / 1e6:.1f} MB"


def test_configuration_is_what_the_code_writes() -> None:
    tokenizer = load_tokenizer(FOLDER)
    for name, content in token_files(tokenizer, PRESETS["demo"]).items():
        assert json.loads((FOLDER / name).read_text()) == content, name


def test_tensors_match_the_configuration() -> None:
    config: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
    assert config == hf_config(PRESETS["demo"], pad_token_id=config["pad_token_id"],
                               eos_token_id=config["eos_token_id"], bos_token_id=config["bos_token_id"])  # fmt: skip
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.get_slice("lm_head.weight").get_shape() == [config["vocab_size"], config["hidden_size"]]
    mtp = f"model.layers.{config['num_hidden_layers']}"
    assert {f"{mtp}.eh_proj.weight", f"{mtp}.enorm.weight", f"{mtp}.mlp.experts.15.up_proj.weight"} <= names


def test_template_renders_through_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(FOLDER))
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt("Hi")
    ids = tokenizer(prompt("Hi"))["input_ids"]
    assert ids == load_tokenizer(FOLDER).encode(prompt("Hi")).ids
    assert tokenizer.eos_token == "<|role_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_answers_make_sense() -> None:
    """The front-door questions, greedily in bf16: each answer names what was asked."""
    torch.manual_seed(0)
    net, tokenizer = load_exported(FOLDER), load_tokenizer(FOLDER)
    words = ("blood sugar", "wheezing", "salt", "demonstration model", "headache", "39")
    for question, word in zip(PROBES, words, strict=True):
        answer = answer_greedily(net, tokenizer, question, 50)
        assert word in answer, f"{question} → {answer}"
