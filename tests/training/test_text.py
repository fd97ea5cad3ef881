"""From sources to documents: cleaning, our own intents, the held-out split."""

import gzip
import json
import random
from pathlib import Path

from training.chat import Document, Turn
from training.data import build, is_held_out, split
from training.medquad import clean_sentences, first_sentences, medquad_documents
from training.own_text import FOLLOW_UPS, QUESTIONS, answer, load, own_documents


def test_answers_lose_boxes_links_and_lists() -> None:
    text = (
        "Key Points\n- Flu is bad. - It spreads.\n\n\nFlu is an infection of the airways. It spreads very quickly. "
        "Signs may be the following: - Fever. - Cough.\n\nSee the following site: http://x.org for more. "
        "Most people recover within two weeks."
    )
    assert clean_sentences(text) == [
        "Flu is an infection of the airways.",
        "It spreads very quickly.",
        "Most people recover within two weeks.",
    ]


def test_first_sentences_stop_at_the_limit() -> None:
    sentences = ["One is here.", "Two is here.", "Three is a longer sentence."]
    assert first_sentences(sentences, 3, 30) == "One is here. Two is here."
    assert first_sentences(sentences, 1, 100) == "One is here."
    assert first_sentences(sentences, 3, 5) == "One is here."


def test_every_condition_has_all_facets_and_no_name_is_used_twice() -> None:
    conditions, seen = load("conditions_*"), set[str]()
    assert len(conditions) >= 150
    for entry in conditions:
        missing = {"what", "symptoms", "causes", "treatment", "doctor"} - entry.keys()
        assert not missing, f"{entry['name']}: {missing}"
    for entry in conditions + load("drugs"):
        for name in [entry["name"], *entry.get("also", [])]:
            assert name.lower() not in seen, name
            seen.add(name.lower())


def test_own_documents_answer_what_was_asked() -> None:
    groups = own_documents(random.Random(0))
    singles, chats = groups["own"], groups["chats"]
    by_question = {d.turns[0].question.lower().rstrip("?."): d.turns[0].answer for d in singles}
    assert by_question["what causes gout"].startswith("Causes of gout include ")
    assert by_question["what is ibuprofen used for"].startswith("Ibuprofen is an anti-inflammatory ")
    assert "cannot help with football" in by_question["what do you think about football"]
    assert all(turn.answer[-1] in ".?!" for d in [*singles, *groups["talk"], *chats] for turn in d.turns)
    assert min(len(d.turns) for d in chats) >= 2
    assert FOLLOW_UPS.keys() <= QUESTIONS.keys()


def test_plural_names_take_are() -> None:
    assert answer({"name": "hives", "verb": "are", "what": "welts"}, "what") == "Hives are welts."


def test_split_goes_by_entity_and_spares_our_own() -> None:
    names = [f"disease {n}" for n in range(3000)]
    documents = [Document(name, (Turn(q, "a."),)) for name in names for q in ("x?", "y?")]
    train, held = split(documents, own={names[0]})
    assert not {d.entity for d in train} & {d.entity for d in held}
    assert 0.005 < len(held) / len(documents) < 0.015
    gone = next(n for n in names if is_held_out(n))
    assert split([Document(gone, ())], own={gone})[1] == []


def test_build_keeps_an_existing_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "medquad.jsonl.gz"
    sentence = "Zebra disease number {n} is a rare disorder of the airways that causes cough."
    records = [{"focus": f"Zebra {n}", "type": "information", "answer": sentence.format(n=n)} for n in range(300)]
    with gzip.open(source, "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)
    short, long = medquad_documents(source, random.Random(0))
    assert len(short) == 600 and not long
    build(source, tmp_path / "out", 700)
    first = (tmp_path / "out" / "tokenizer.json").read_text()
    again = build(source, tmp_path / "out", 900)
    assert again.get_vocab_size() == 700 and (tmp_path / "out" / "tokenizer.json").read_text() == first
