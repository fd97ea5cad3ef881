"""Build the token files: `python -m training.data --medquad FILE --out FOLDER`."""

import argparse
import hashlib
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from training.chat import Document
from training.corpus import encode_group, save_group
from training.medquad import medquad_documents
from training.own_text import own_documents
from training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

SEED = 20
HELD_OUT_PERCENT = 1


def is_held_out(entity: str) -> bool:
    """One entity in a hundred, by a hash: the same ones whatever else is in the corpus."""
    digest = hashlib.sha256(entity.lower().encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def split(documents: Iterable[Document], own: set[str]) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents; entities of our own text always train, MedQuAD's copies of them too."""
    train, held = list[Document](), list[Document]()
    for document in documents:
        is_own = document.entity.lower() in own
        (held if is_held_out(document.entity) and not is_own else train).append(document)
    return train, held


def collect(medquad: Path) -> dict[str, list[Document]]:
    """All groups by name: own, talk, chats, short, long, and the held-out MedQuAD entities' short documents."""
    rng = random.Random(SEED)
    own = own_documents(rng)
    short, long = medquad_documents(medquad, rng)
    names = {d.entity.lower() for d in own["own"]}
    short, held = split(short, names)
    long, _ = split(long, names)
    return {**own, "short": short, "long": long, "heldout": held}


def build(medquad: Path, out: Path, vocab_size: int) -> Tokenizer:
    """Write every group's token file; an existing tokenizer in `out` is kept, so that checkpoints stay valid."""
    groups = collect(medquad)
    if (out / "tokenizer.json").exists():
        tokenizer = load_tokenizer(out)
    else:
        text = (d for name in ("own", "talk", "short", "long") for d in groups[name])
        tokenizer = train_tokenizer(text, vocab_size)
        save_tokenizer(tokenizer, out)
    for name, documents in groups.items():
        group = encode_group(documents, tokenizer)
        save_group(group, out, name)
        print(f"group={name} documents={len(group)} tokens={len(group.tokens)}", flush=True)
    return tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build tokenizer and token files.")
    parser.add_argument("--medquad", type=Path, required=True, help="medquad.jsonl or medquad.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json and the token files")
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args(argv)
    build(args.medquad, args.out, args.vocab_size)


if __name__ == "__main__":
    main()
