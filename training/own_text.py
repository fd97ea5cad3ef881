"""Our own answers (`training/intents/*.yaml`) unfolded into conversations by question templates."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from training.chat import Document, Turn
from training.medquad import casual

INTENTS = Path(__file__).parent / "intents"
PHRASINGS: dict[str, Any] = yaml.safe_load((INTENTS / "phrasings.yaml").read_text(encoding="utf-8"))
QUESTIONS: dict[str, list[str]] = PHRASINGS["questions"]
FOLLOW_UPS: dict[str, list[str]] = PHRASINGS["follow_ups"]
ANSWERS: dict[str, str] = PHRASINGS["answers"]
SYSTEMS: list[str] = PHRASINGS["systems"]


def upper_first(text: str) -> str:
    """The text with a capital in front."""
    return text[:1].upper() + text[1:]


def joined(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of one name made one."""
    by_name: dict[str, dict[str, Any]] = {}
    for entry in entries:
        by_name.setdefault(str(entry["name"]), {}).update(entry)
    return list(by_name.values())


def load(pattern: str) -> list[dict[str, Any]]:
    """The entries of the files in `training/intents` whose stem matches."""
    texts = [p.read_text(encoding="utf-8") for p in sorted(INTENTS.glob(f"{pattern}.yaml"))]
    return joined([entry for text in texts for entry in yaml.safe_load(text)])


def answer(entry: dict[str, Any], facet: str) -> str:
    """The one answer that every phrasing of a question gets."""
    name, text = str(entry["name"]), str(entry[facet]) if facet in entry else ""
    text = ANSWERS[facet].format(n=name, N=upper_first(name), t=text, verb=entry.get("verb", "is"))
    return text if text.endswith((".", "!")) else text + "."


def ask(template: str, name: str, rng: random.Random) -> str:
    """Fill a question template."""
    return casual(template.format(x=name, X=upper_first(name)), rng)


def entry_documents(entry: dict[str, Any], facets: list[str], rng: random.Random) -> Iterator[Document]:
    """Every phrasing of every facet, under each of the entry's names."""
    names = [str(entry["name"]), *map(str, entry.get("also", []))]
    for facet in facets:
        turn_answer = answer(entry, facet)
        for template, name in itertools.product(QUESTIONS[facet], names):
            system = rng.choice(SYSTEMS) if rng.random() < 0.12 else ""
            yield Document(str(entry["name"]), (Turn(ask(template, name, rng), turn_answer),), system)


def entry_chats(entry: dict[str, Any], facets: list[str], rng: random.Random, count: int) -> Iterator[Document]:
    """Conversations of two or three turns about one entry, later questions without its name."""
    names = [str(entry["name"]), *map(str, entry.get("also", []))]
    for _ in range(count):
        first, *rest = rng.sample(facets, min(len(facets), rng.choice([2, 2, 3])))
        turns = [Turn(ask(rng.choice(QUESTIONS[first]), rng.choice(names), rng), answer(entry, first))]
        turns += [Turn(casual(rng.choice(FOLLOW_UPS[f]), rng), answer(entry, f)) for f in rest]
        yield Document(str(entry["name"]), tuple(turns))


def small_talk(rng: random.Random) -> Iterator[Document]:
    """Greetings, identity, thanks and the like: each entry lists its own questions."""
    for entry in yaml.safe_load((INTENTS / "talk.yaml").read_text(encoding="utf-8")):
        for question, style in itertools.product(entry["ask"], range(3)):
            asked = (question, question.lower(), question.rstrip("?.!"))[style]
            system = rng.choice(SYSTEMS) if rng.random() < 0.2 else ""
            yield Document(str(entry["ask"][0]), (Turn(asked, entry["answer"]),), system)


def own_documents(rng: random.Random) -> dict[str, list[Document]]:
    """Groups by name: own (single questions), talk (small talk, first aid, comparisons), chats (conversations).

    Talk is few documents that everybody asks first, so the schedule gives it a share of its own.
    """
    kinds = [
        ("conditions_*", "own", ["what", "symptoms", "causes", "treatment", "doctor", "prevent", "spread"], 30),
        ("drugs", "own", ["use", "side", "caution"], 12),
        ("other_topics", "own", ["refuse"], 0),
        ("first_aid", "talk", ["aid"], 0),
        ("comparisons", "talk", ["differ"], 0),
    ]
    groups: dict[str, list[Document]] = {"own": [], "talk": list(small_talk(rng)), "chats": []}
    for pattern, group, facets, count in kinds:
        for entry in load(pattern):
            present = [f for f in facets if f in entry or f == "refuse"]
            groups[group] += entry_documents(entry, present, rng)
            groups["chats"] += entry_chats(entry, present, rng, count)
    greetings = [d for d in groups["talk"] if d.entity == "Hello"]
    for chat in rng.sample(groups["chats"], len(groups["chats"]) // 6):  # some conversations open with a greeting
        groups["chats"].append(Document(chat.entity, (rng.choice(greetings).turns[0], *chat.turns[:2])))
    return groups
