from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from cluster.tokenizer import Tokenizer
from model.errors import CheckpointError
from tests.cluster.checkpoint_folder import END, ROLE_END, SPECIAL, train_tokenizer

LIBRARY = train_tokenizer()
OURS = Tokenizer(LIBRARY)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.integers(0, LIBRARY.get_vocab_size() - 1)))
def test_decoding_agrees_with_the_library(ids: list[int]) -> None:
    ids = [i for i in ids if LIBRARY.id_to_token(i) != "plain added"]  # it joins the bytes beside added tokens apart
    assert OURS.decode(ids, skip_special_tokens=True) == LIBRARY.decode(ids, skip_special_tokens=True)


@given(texts)
async def test_text_survives_the_round_trip(text: str) -> None:
    ids = await OURS.encode(text)
    assert OURS.decode(ids, skip_special_tokens=False) == text
    assert ids == LIBRARY.encode(text, add_special_tokens=False).ids


async def test_a_long_text_is_encoded_the_same() -> None:
    text = "What is asthma? 哮喘 " * 1000
    assert await OURS.encode(text) == LIBRARY.encode(text, add_special_tokens=False).ids


async def test_special_tokens_are_read_from_text_and_hidden_on_demand() -> None:
    ids = await OURS.encode("Hi<|role_end|>")
    assert ids[-1] == ROLE_END
    assert OURS.decode(ids, skip_special_tokens=False) == "Hi<|role_end|>"
    assert OURS.decode(ids, skip_special_tokens=True) == "Hi"
    assert OURS.special_ids == set(range(len(SPECIAL)))
    assert OURS.piece(END) == "<|endoftext|>"


async def test_added_tokens_that_are_not_special_show() -> None:
    ids = await OURS.encode("a plain added b")
    assert OURS.decode(ids, skip_special_tokens=True) == "a plain added b"


def test_ids_without_a_token_are_nothing() -> None:
    assert OURS.decode([511, 10**9, -1], skip_special_tokens=False) == ""
    assert OURS.piece(511) == ""


def test_half_a_character_shows_as_a_replacement() -> None:
    piece = next(i for i, content in OURS.pieces.items() if content == "哮".encode()[:1])
    assert OURS.piece(piece) == "\ufffd"


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    library = train_tokenizer()
    library.enable_truncation(3)
    library.enable_padding(length=50)
    library.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_dir(tmp_path).encode_now("What is asthma and why?")) > 3
    assert len(Tokenizer.from_dir(tmp_path).encode_now("a")) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: No such file"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"{", b"[]", b"null"])
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        Tokenizer.from_dir(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    fields = json.loads(train_tokenizer().to_str())
    fields["decoder"] = json.loads(json.dumps({"type": "WordPiece", "prefix": "##", "cleanup": True}))
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"decoder \['WordPiece'\] is not supported"):
        Tokenizer.from_dir(tmp_path)


def test_a_decoder_that_is_a_list_of_one_is_taken(tmp_path: Path) -> None:
    library = train_tokenizer()
    library.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteLevel()])
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_dir(tmp_path).decode([40, 41], skip_special_tokens=True)


def test_a_broken_model_inside_is_told_in_the_library_s_words(tmp_path: Path) -> None:
    fields = json.loads(train_tokenizer().to_str())
    fields["model"]["merges"] = [["nowhere", "else"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .*nowhere"):
        Tokenizer.from_dir(tmp_path)
