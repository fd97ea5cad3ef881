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
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful medical assistant.",
    "You are sigmoe's demonstration model.",
    "Answer briefly.",
    "You are AntAngelMed, a helpful medical assistant.",
)
QUESTIONS = {
    "what": [
        "What is {x}?", "What is {x}?", "What's {x}?", "Tell me about {x}.", "Explain {x}.", "Can you explain {x}?",
        "What does {x} mean?", "Define {x}.", "I want to know about {x}.", "{X}?", "Please tell me what {x} is.",
        "Could you tell me about {x}?", "Describe {x}.", "What exactly is {x}?",
    ],
    "symptoms": [
        "What are the symptoms of {x}?", "What are the symptoms of {x}?", "What are the signs of {x}?",
        "Symptoms of {x}?", "How do I know if I have {x}?", "What does {x} feel like?", "{X} symptoms",
        "Which symptoms does {x} have?", "How can I tell if it is {x}?", "What are common symptoms of {x}?",
        "Tell me the symptoms of {x}.", "Tell me about the symptoms of {x}.",
    ],
    "causes": [
        "What causes {x}?", "What causes {x}?", "What are the causes of {x}?", "Why do people get {x}?",
        "How do you get {x}?", "What is the cause of {x}?", "{X} causes", "Why does {x} happen?",
        "What can cause {x}?", "Tell me the causes of {x}.",
    ],
    "treatment": [
        "How is {x} treated?", "How is {x} treated?", "What is the treatment for {x}?", "How do you treat {x}?",
        "What are the treatments for {x}?", "How can I treat {x}?", "{X} treatment", "What helps with {x}?",
        "What can I do about {x}?", "What should I do if I have {x}?", "Is there a treatment for {x}?",
        "What medicine is used for {x}?",
    ],
    "doctor": [
        "When should I see a doctor for {x}?", "When should I see a doctor for {x}?",
        "When should I see a doctor about {x}?", "When should I call a doctor for {x}?",
        "Do I need a doctor for {x}?", "When is {x} serious?", "Is {x} dangerous?", "When should I worry about {x}?",
        "When should I go to the hospital for {x}?", "Should I see a doctor for {x}?",
    ],
    "use": [
        "What is {x}?", "What is {x} used for?", "What is {x} for?", "What does {x} do?", "Tell me about {x}.",
        "Why would I take {x}?", "What's {x}?", "{X}?", "What kind of medicine is {x}?", "Explain {x}.",
    ],
    "side": [
        "What are the side effects of {x}?", "Does {x} have side effects?", "Side effects of {x}?",
        "What side effects can {x} cause?", "{X} side effects", "Tell me the side effects of {x}.",
    ],
    "caution": [
        "Who should not take {x}?", "Is {x} safe?", "What should I know before taking {x}?",
        "What precautions apply to {x}?", "Can everyone take {x}?", "Is it safe to take {x}?",
    ],
    "aid": [
        "What should I do for {x}?", "What is the first aid for {x}?", "First aid for {x}?", "How do I help with {x}?",
        "What do I do about {x}?", "Help with {x}!", "What should I do in case of {x}?",
        "{X}, what should I do?", "How should I handle {x}?",
    ],
    "refuse": [
        "Tell me about {x}.", "What do you think about {x}?", "Can you help me with {x}?", "What is {x}?",
        "I have a question about {x}.", "Explain {x}.", "Do you know {x}?", "Write something about {x}.",
    ],
}  # fmt: skip
ANSWERS = {
    "what": "{N} {verb} {t}",
    "symptoms": "Common symptoms of {n} include {t}",
    "causes": "Causes of {n} include {t}",
    "treatment": "Treatment of {n} includes {t}",
    "doctor": "See a doctor about {n} if {t}",
    "use": "{N} is {t}",
    "side": "Side effects of {n} can include {t}",
    "caution": "Before taking {n}, tell a doctor or pharmacist if you {t}",
    "aid": "{t}",
    "refuse": "I am a small demonstration model for health questions, so I cannot help with {n}. "
    "You can ask me about common conditions, medicines and first aid.",
}
FOLLOW_UPS = {
    "what": ["What is it?", "Can you explain what it is?"],
    "symptoms": ["What are the symptoms?", "What are its symptoms?", "And the symptoms?", "How would I notice it?"],
    "causes": ["What causes it?", "Why does it happen?", "And the causes?", "What are the causes?"],
    "treatment": ["How is it treated?", "What is the treatment?", "What can I do about it?", "And the treatment?"],
    "doctor": ["When should I see a doctor?", "Is it dangerous?", "When should I worry?", "Do I need a doctor?"],
    "use": ["What is it used for?", "What does it do?"],
    "side": ["What are the side effects?", "Does it have side effects?", "And side effects?"],
    "caution": ["Is it safe?", "Who should not take it?", "What should I know before taking it?"],
}


def upper_first(text: str) -> str:
    """The text with a capital in front."""
    return text[:1].upper() + text[1:]


def load(pattern: str) -> list[dict[str, Any]]:
    """The entries of the files in `training/intents` whose stem matches."""
    texts = [p.read_text(encoding="utf-8") for p in sorted(INTENTS.glob(f"{pattern}.yaml"))]
    return [entry for text in texts for entry in yaml.safe_load(text)]


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
    for entry in load("talk"):
        for question, style in itertools.product(entry["ask"], range(3)):
            asked = (question, question.lower(), question.rstrip("?.!"))[style]
            system = rng.choice(SYSTEMS) if rng.random() < 0.2 else ""
            yield Document(str(entry["ask"][0]), (Turn(asked, entry["answer"]),), system)


def own_documents(rng: random.Random) -> tuple[list[Document], list[Document]]:
    """All single questions, and all conversations."""
    kinds = [
        ("conditions_*", ["what", "symptoms", "causes", "treatment", "doctor"], 30),
        ("drugs", ["use", "side", "caution"], 12),
        ("first_aid", ["aid"], 0),
        ("other_topics", ["refuse"], 0),
    ]
    singles, chats = list(small_talk(rng)), list[Document]()
    for pattern, facets, count in kinds:
        for entry in load(pattern):
            singles += entry_documents(entry, facets, rng)
            chats += entry_chats(entry, facets, rng, count)
    greetings = [d for d in singles if d.entity == "Hello"]
    for chat in rng.sample(chats, len(chats) // 6):  # some conversations open with a greeting
        chats.append(Document(chat.entity, (rng.choice(greetings).turns[0], *chat.turns[:2])))
    return singles, chats
