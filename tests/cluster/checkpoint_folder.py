"""A checkpoint folder without weights: all that a gateway reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.shapes import SHAPES

VOCAB_SIZE = 512  # of the model; the tokenizer has fewer
END, ROLE_END, START = 0, 1, 2
SPECIAL = ("<|endoftext|>", "<|role_end|>", "<|startoftext|>", "<role>", "</role>")
_TEXT = [
    "What is asthma? Asthma is a disease of the airways. It makes breathing hard, and the chest feels tight.",
    "Die Straße führt über die Brücke nach Süden. Ich grüße dich. 哮喘是一种呼吸道疾病。 😀 👩‍⚕️ naïve café",
    "HUMAN ASSISTANT SYSTEM detailed thinking off\n\n1234567890 def f(x): return x * 2",
]


def write_checkpoint_folder(folder: Path, **changes: Any) -> Path:
    """config.json of shape B, a small byte-level BPE, and generation defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = SHAPES["B"] | {"vocab_size": VOCAB_SIZE, "eos_token_id": END} | changes
    (folder / "config.json").write_text(json.dumps(fields))
    write_tokenizer_files(folder)
    return folder


def write_tokenizer_files(folder: Path) -> None:
    """What a checkpoint has besides config.json and weights."""
    train_tokenizer().save(str(folder / "tokenizer.json"))
    added = {str(i): {"content": content, "special": True} for i, content in enumerate(SPECIAL)}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added, "bos_token": SPECIAL[START], "eos_token": SPECIAL[ROLE_END]})
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [END, ROLE_END], "temperature": 0.5, "top_p": 0.75, "top_k": 7})
    )


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=[AddedToken(content, special=True) for content in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_tokens(["plain added"])
    return tokenizer
