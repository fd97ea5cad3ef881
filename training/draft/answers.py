"""What a head learns from: the model's own answers to a list of questions, written part by part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from cluster.chat_template import ChatTemplate
from cluster.offline import OfflineEngine
from cluster.tokenizer import Tokenizer
from engine.config import EngineConfig
from scheduler.request import FinishReason, SamplingParams

PART = 2000  # questions whose answers are written at a time; a kill loses at most so many


@dataclass(frozen=True, slots=True)
class Talk:
    """One question with its answer: token ids, and where the answer begins."""

    tokens: NDArray[np.int64]
    answer_start: int


class AnswersOf(Protocol):
    """A model that can be asked."""

    def answer(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> Iterable[tuple[int, Sequence[int]]]:
        """Index and answer of every prompt that can be answered, as they end, ends of text included."""
        ...


class LoadedModel:
    """The model in this process."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises what `OfflineEngine.load` raises."""
        self._engine = OfflineEngine.load(config)

    def answer(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> Iterator[tuple[int, Sequence[int]]]:
        """See `AnswersOf`."""
        for answer in self._engine.generate(map(tuple, prompts), sampling):
            if answer.finish_reason is not FinishReason.ERROR:
                yield answer.prompt_index, answer.token_ids


def read_questions(path: Path) -> list[str]:
    """First turns of a JSON-lines file of `{"turns": [...]}`, or the lines of a text file. Raises ValueError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    questions = []
    for number, line in enumerate(lines, start=1):
        if path.suffix != ".jsonl":
            questions.append(line.strip())
            continue
        try:
            questions.append(str(json.loads(line)["turns"][0]))
        except (ValueError, KeyError, IndexError, TypeError):
            raise ValueError(f'{path}: line {number} is not of the form {{"turns": ["..."]}}') from None
    questions = [question for question in questions if question]
    if not questions:
        raise ValueError(f"{path}: holds no question")
    return questions


def answer_all(
    load: Callable[[], AnswersOf],
    model: Path,
    questions: Sequence[str],
    out: Path,
    *,
    temperatures: Sequence[float],
    max_tokens: int,
    progress: Progress,
) -> None:
    """Write the answers of `model`, which `load` brings, to `out`, in parts of `PART`; those there are left alone.

    Questions take the `temperatures` in turn.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = range(0, len(questions), PART)
    missing = [first for first in parts if not _part(out, first).exists()]
    if not missing:
        return
    template, tokenizer = ChatTemplate.from_dir(model), Tokenizer.from_dir(model)
    asked = load()
    task = progress.add_task("answers", total=len(questions), completed=(len(parts) - len(missing)) * PART)
    for first in missing:
        talks: list[Talk] = []
        for number, temperature in enumerate(temperatures):
            mine = questions[first : first + PART][number :: len(temperatures)]
            prompts = [tokenizer.encode_now(template.render([{"role": "user", "content": text}])) for text in mine]
            sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=first)
            for index, answer in asked.answer(prompts, sampling):
                talks.append(Talk(np.array([*prompts[index], *answer], dtype=np.int64), len(prompts[index])))
            progress.advance(task, len(mine))
        _save(_part(out, first), talks)


def read_talks(folder: Path) -> Iterator[Talk]:
    """Everything that `answer_all` wrote, part by part."""
    for file in sorted(folder.glob("answers-*.npz")):
        yield from _load(file)


def _part(folder: Path, first: int) -> Path:
    return folder / f"answers-{first:08d}.npz"


def _save(file: Path, talks: Sequence[Talk]) -> None:
    partial = file.with_name(f"partial-{file.name}")
    tokens = np.concatenate([talk.tokens for talk in talks]) if talks else np.zeros(0, dtype=np.int64)
    lengths = np.array([len(talk.tokens) for talk in talks], dtype=np.int64)
    np.savez_compressed(partial, tokens=tokens, lengths=lengths, starts=np.array([t.answer_start for t in talks]))
    partial.replace(file)


def _load(file: Path) -> Iterator[Talk]:
    with np.load(file) as stored:  # which unpacks an array anew each time that it is asked for it
        tokens, lengths, starts = stored["tokens"], stored["lengths"], stored["starts"]
    for end, length, start in zip(np.cumsum(lengths), lengths, starts, strict=True):
        yield Talk(tokens[end - length : end], int(start))
