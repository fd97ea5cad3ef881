"""The prompt sets that ship with sigmoe; `data/README.md` credits their authors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sigmoe.loadtest.jsonl import read_items
from sigmoe.loadtest.workload import Item

_FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """One set: its file and whose it is."""

    file: str
    origin: str


SETS = {
    "medical": BuiltIn(
        "medical_questions.jsonl",
        "128 medical questions held out from the shipped draft head; entities of MedQuAD (CC BY 4.0) and our own",
    ),
    "medical-diseases": BuiltIn(
        "medical_diseases.jsonl",
        "126 questions on diseases held out from the shipped model itself; entities of MedQuAD (CC BY 4.0)",
    ),
    "humaneval": BuiltIn("humaneval.jsonl", "HumanEval, 164 prompts (MIT, Copyright (c) OpenAI)"),
}


def items(name: str) -> list[Item]:
    """The items of a built-in set."""
    return read_items(_FOLDER / SETS[name].file)
