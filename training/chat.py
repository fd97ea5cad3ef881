"""Ling's chat frame: the special tokens, the rendering that training uses, and the template that is shipped."""

from collections.abc import Sequence
from dataclasses import dataclass

BOS, EOS, CLS, GMASK, ROLE_END = "<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|role_end|>"
ROLE, ROLE_CLOSE = "<role>", "</role>"
SPECIAL_TOKENS = (BOS, EOS, CLS, GMASK, ROLE_END, ROLE, ROLE_CLOSE)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation to learn from; `entity` is what the held-out split goes by."""

    entity: str
    turns: tuple[Turn, ...]
    system: str = ""


def render(system: str, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """Pieces of the framed conversation with a flag on those that the assistant says (its `<|role_end|>` included)."""
    text = f"{system}\n" if system else ""
    head = f"{ROLE}SYSTEM{ROLE_CLOSE}{text}detailed thinking off{ROLE_END}"
    pieces = []
    for turn in turns:
        pieces.append((f"{head}{ROLE}HUMAN{ROLE_CLOSE}{turn.question}{ROLE_END}{ROLE}ASSISTANT{ROLE_CLOSE}", False))
        pieces.append((turn.answer + ROLE_END, True))
        head = ""
    return pieces


def prompt(question: str, system: str = "") -> str:
    """The frame up to the point where the assistant speaks."""
    return render(system, [Turn(question, "")])[0][0]
