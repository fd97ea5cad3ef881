"""MedQuAD (CC BY 4.0) as short conversations: cleaned, the first sentences of an answer, several phrasings."""

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from training.chat import Document, Turn

SHORT_CHARS, LONG_CHARS = 420, 850
SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"%][.!?])\s+(?=[A-Z0-9\"(])")
JUNK = re.compile(
    r"https?:|www\.|PDQ|See the following|This summary|click here|Human Phenotype|MedlinePlus|NIHSeniorHealth"
    r"|Key Points|Frequently asked|these resources|listed below|following list|\[|©|Watch a video|see the .* section",
    re.IGNORECASE,
)
QUESTIONS = {
    "information": ["What is {x}?", "What is {x}?", "Tell me about {x}.", "Can you explain {x}?", "Describe {x}."],
    "symptoms": ["What are the symptoms of {x}?", "What are the signs of {x}?", "Symptoms of {x}?"],
    "treatment": ["How is {x} treated?", "What are the treatments for {x}?", "How do you treat {x}?"],
    "causes": ["What causes {x}?", "Why do people get {x}?", "What are the causes of {x}?"],
    "outlook": ["What is the outlook for {x}?", "What is the prognosis of {x}?"],
    "exams and tests": ["How is {x} diagnosed?", "Which tests are used for {x}?"],
    "prevention": ["How can {x} be prevented?", "Can I prevent {x}?"],
    "susceptibility": ["Who is at risk for {x}?", "Who gets {x}?"],
    "inheritance": ["Is {x} inherited?", "How is {x} inherited?"],
    "genetic changes": ["What genetic changes are related to {x}?", "Which genes are linked to {x}?"],
    "frequency": ["How many people are affected by {x}?", "How common is {x}?"],
    "complications": ["What are the complications of {x}?"],
    "considerations": ["What should I know about {x}?"],
    "stages": ["What are the stages of {x}?"],
}


def clean_sentences(answer: str) -> list[str]:
    """Whole sentences of an answer, in order, without key-point boxes, link lines and bullet lists."""
    if answer.startswith("Key Points"):
        answer = answer.split("\n\n\n", 1)[-1]
    sentences = []
    for paragraph in re.split(r"\n\s*\n", answer):
        text = re.sub(r"\s+", " ", paragraph.split(" - ")[0]).strip().lstrip("- ")
        for sentence in SENTENCE_END.split(text):
            if 20 <= len(sentence) <= LONG_CHARS and sentence[-1] in ".!" and not JUNK.search(sentence):
                sentences.append(sentence)
    return sentences


def first_sentences(sentences: list[str], max_sentences: int, max_chars: int) -> str:
    """As many leading sentences as fit, at least one."""
    taken = sentences[:1]
    for sentence in sentences[1:max_sentences]:
        if len(" ".join([*taken, sentence])) > max_chars:
            break
        taken.append(sentence)
    return " ".join(taken)


def casual(question: str, rng: random.Random) -> str:
    """Now and then the way people type: lower case, no question mark, a greeting in front."""
    roll = rng.random()
    if roll < 0.25:
        question = question.lower()
    if rng.random() < 0.2:
        question = question.rstrip("?.")
    return question


def read_records(path: Path) -> Iterator[dict[str, str]]:
    """The JSONL's records, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def medquad_documents(path: Path, rng: random.Random) -> tuple[list[Document], list[Document]]:
    """Short documents (one to three sentences, two phrasings each) and long ones (as much as a row takes)."""
    short, long = [], []
    for record in read_records(path):
        templates = QUESTIONS.get(record["type"])
        sentences = clean_sentences(record["answer"])
        if not templates or not sentences or len(sentences[0]) > 500:
            continue
        focus = re.sub(r"\s+", " ", record["focus"]).strip()
        entity = focus.lower()
        brief = first_sentences(sentences, rng.choice([1, 2, 2, 3]), SHORT_CHARS)
        for template in rng.sample(templates, min(2, len(templates))):
            short.append(Document(entity, (Turn(casual(template.format(x=focus), rng), brief),)))
        full = first_sentences(sentences, 12, LONG_CHARS)
        if len(full) > len(brief) + 120:
            asked = f"{templates[0].format(x=focus)} Please explain in detail."
            long.append(Document(entity, (Turn(asked, full),)))
    return short, long
