"""The questions that the shipped draft head was trained with: JSON lines for `sigmoe train-draft --questions`.

    python -m training.draft.questions --medquad medquad.jsonl.gz --out train.jsonl

What the small model was trained to answer: MedQuAD's questions, phrased twice, and our own. Left out are the diseases
that its own training left out, and every question of the medical sets in sigmoe/loadtest/data, with which heads are
measured.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.data import is_held_out
from training.draft.answers import read_questions
from training.medquad import QUESTIONS, casual, read_records
from training.own_text import own_documents

MEASURED = Path(__file__).parents[2] / "sigmoe" / "loadtest" / "data"


def questions(medquad: Path, measured: Path, seed: int) -> list[str]:
    """All of them once, in an order drawn from the seed."""
    rng = random.Random(seed)
    left_out = {
        _bare(question) for file in sorted(measured.glob("medical_*.jsonl")) for question in read_questions(file)
    }
    found = dict.fromkeys(question for question in _all(medquad, rng) if _bare(question) not in left_out)
    drawn = list(found)
    rng.shuffle(drawn)
    return drawn


def _bare(question: str) -> str:
    """What is asked, however it is typed."""
    return question.casefold().rstrip("?. ")


def _all(medquad: Path, rng: random.Random) -> Iterator[str]:
    own = own_documents(rng)
    known = {document.entity.lower() for document in own["own"]}
    for record in read_records(medquad):
        focus = re.sub(r"\s+", " ", record["focus"]).strip()
        templates = QUESTIONS.get(record["type"], [])
        if is_held_out(focus) and focus.lower() not in known:
            continue
        for template in rng.sample(templates, min(2, len(templates))):
            yield casual(template.format(x=focus), rng)
    for group in ("own", "talk", "chats"):
        for document in own[group]:
            yield document.turns[0].question


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--medquad", type=Path, required=True, help="JSON lines of records, gzipped or not")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=72_000, help="questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args(argv)
    drawn = questions(options.medquad, MEASURED, options.seed)[: options.most]
    with options.out.open("w", encoding="utf-8") as out:
        for question in drawn:
            out.write(json.dumps({"turns": [question]}, ensure_ascii=False) + "\n")
    print(f"{len(drawn)} questions in {options.out}")


if __name__ == "__main__":
    main()
