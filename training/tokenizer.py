"""The model's own byte-level BPE, with Ling's pre-split and special tokens."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.chat import SPECIAL_TOKENS, Document, render

PRE_SPLIT = (  # Ling's: words with at most one leading mark, digits one by one (model-spec §7)
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def train_tokenizer(documents: Iterator[Document], vocab_size: int) -> Tokenizer:
    """A BPE of exactly `vocab_size` ids, special tokens last, as in Ling's own vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == vocab_size, (tokenizer.get_vocab_size(), vocab_size)
    return tokenizer


def _texts(documents: Iterator[Document]) -> Iterator[str]:
    for document in documents:
        for piece, _ in render(document.system, document.turns):
            for special in SPECIAL_TOKENS:
                piece = piece.replace(special, "\n")
            yield piece


def load_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizer.json` of a folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    number: int | None = tokenizer.token_to_id(token)
    assert number is not None, f"{token!r} is not in the vocabulary"
    return number


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, compact: it counts towards the repository's size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
