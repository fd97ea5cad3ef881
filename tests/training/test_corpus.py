"""Token files and row packing."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from training.chat import Document, Turn
from training.corpus import ANSWER_BIT, Sampler, encode_group, load_group, make_rows, save_group


def test_answers_carry_the_bit_and_nothing_else_does(tokenizer: Tokenizer) -> None:
    group = encode_group([Document("x", (Turn("What is fever?", "Rest."), Turn("cough?", "Water.")))], tokenizer)
    is_answer = (group.tokens & ANSWER_BIT) != 0
    said = tokenizer.decode((group.tokens[is_answer] & ~ANSWER_BIT).tolist(), skip_special_tokens=False)
    asked = tokenizer.decode(group.tokens[~is_answer].tolist(), skip_special_tokens=False)
    assert said == "Rest.<|role_end|>Water.<|role_end|>"
    assert asked == (
        "<role>SYSTEM</role>detailed thinking off<|role_end|>"
        "<role>HUMAN</role>What is fever?<|role_end|><role>ASSISTANT</role>"
        "<role>HUMAN</role>cough?<|role_end|><role>ASSISTANT</role>"
    )
    assert group.num_bytes == len(said)


def test_token_files_survive_a_round_trip(documents: list[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    group = encode_group(documents, tokenizer)
    save_group(group, tmp_path, "own")
    again = load_group(tmp_path, "own")
    assert np.array_equal(group.tokens, again.tokens) and np.array_equal(group.offsets, again.offsets)
    assert group.num_bytes == again.num_bytes and group.tokens.dtype == np.uint16


def test_targets_stop_at_document_ends() -> None:
    tokens = np.array([[5, 6 | ANSWER_BIT, 7, 8 | ANSWER_BIT, 0]], dtype=np.uint16)
    segments = np.array([[0, 0, 1, 1, -1]])
    rows = make_rows(tokens, segments)
    assert rows.inputs.tolist() == [[5, 6, 7, 8]]
    assert rows.targets.tolist() == [[6, 7, 8, 0]]
    assert rows.is_text.tolist() == [[True, False, True, False]]
    assert rows.is_answer.tolist() == [[True, False, True, False]]


def make_sampler(documents: list[Document], tokenizer: Tokenizer) -> Sampler:
    groups = {
        name: encode_group(part, tokenizer) for name, part in (("a", documents[:150]), ("b", documents[150:]))
    }  # fmt: skip
    return Sampler(groups, row=160, pad=0, seed=3)


def test_rows_hold_whole_documents_in_the_asked_shares(documents: list[Document], tokenizer: Tokenizer) -> None:
    sampler = make_sampler(documents, tokenizer)
    rows = sampler.batch(60, {"a": 0.25, "b": 0.75})
    assert abs(sampler.served["b"] / sum(sampler.served.values()) - 0.75) < 0.02
    assert (rows.segments < 0).float().mean() < 0.15, "too much padding"
    role = tokenizer.token_to_id("<role>")
    starts = rows.segments[:, 1:] != rows.segments[:, :-1]
    assert set(rows.inputs[:, 1:][starts & (rows.segments[:, 1:] >= 0)].tolist()) == {role}


def test_one_epoch_serves_every_document_once(documents: list[Document], tokenizer: Tokenizer) -> None:
    sampler = make_sampler(documents, tokenizer)
    drawn = [sampler._draw("b") for _ in range(100)]
    assert sorted(drawn[:50]) == sorted(drawn[50:]) == list(range(50))
    assert drawn[:50] != drawn[50:]


def test_sampler_goes_on_where_it_was(documents: list[Document], tokenizer: Tokenizer) -> None:
    shares = {"a": 0.5, "b": 0.5}
    first = make_sampler(documents, tokenizer)
    first.batch(7, shares)
    second = make_sampler(documents, tokenizer)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.batch(5, shares).inputs, second.batch(5, shares).inputs)
