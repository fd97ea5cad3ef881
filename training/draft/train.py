"""From a model and a list of questions to a trained head: what `sigmoe train-draft` runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engine.config import EngineConfig
from model.config import ModelConfig
from training.draft.answers import Talk, answer_all, load_talks, read_questions
from training.draft.chain import TalkBatch, Teacher
from training.draft.data import batches, collate, endless
from training.draft.export import export_head
from training.draft.net import DraftNet
from training.draft.shape import LAYOUTS, DraftShape
from training.draft.target import TargetModel
from training.draft.trainer import Score, Trainer, evaluate
from training.draft.vocabulary import Vocabulary, choose_vocabulary

_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was told; see its help."""

    model: Path
    questions: Path
    held_out: Path
    out: Path
    work: Path
    minutes: float
    vocab_size: int
    width: int | None
    capture_layers: tuple[int, ...] | None
    num_steps: int
    max_answer: int
    max_length: int
    num_threads: int
    seed: int


def train(options: Options) -> Score:
    """Answers, training, evaluation, export; every stage goes on where a kill left it. Raises ValueError."""
    console = Console()
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(options.seed)
    with _progress(console) as progress:
        talks, held_out = (_talks(options, name, path, progress) for name, path in _questions(options))
    config = ModelConfig.from_dir(options.model)
    counts = _said(talks, config.vocab_size)
    vocabulary = choose_vocabulary(counts, min(options.vocab_size, config.vocab_size), _ends(config))
    console.print(f"{len(talks)} answers, {counts.sum():,} tokens; the vocabulary covers {vocabulary.coverage:.2%}")
    shape = DraftShape.beside(
        config, vocab_size=options.vocab_size, width=options.width, capture_layers=options.capture_layers
    )
    net, teacher = _head(options, shape, vocabulary)
    trainer = Trainer(net, teacher, out=options.work, minutes=options.minutes, num_steps=options.num_steps)
    if trainer.resume():
        console.print(f"going on from step {trainer.step}")
    groups = batches(talks, max_tokens=_BATCH_TOKENS, max_length=options.max_length)
    with _progress(console) as progress:
        trainer.run(endless(groups, options.seed, trainer.step), progress)
    unseen = _batches(held_out, options)
    for num_drafts in (3, options.num_steps):
        score = evaluate(teacher, net, unseen, num_drafts)
        console.print(f"held-out questions, {num_drafts} drafts a round: {score}", highlight=False)
    for layout in LAYOUTS:
        export_head(net, vocabulary, options.out if layout == LAYOUTS[0] else options.work / layout, layout)
    console.print(f"wrote {options.out} ({LAYOUTS[0]} layout) and {options.work / LAYOUTS[1]}")
    return evaluate(teacher, net, unseen, 3)


def _questions(options: Options) -> tuple[tuple[str, Path], ...]:
    return (("answers", options.questions), ("held-out", options.held_out))


def _talks(options: Options, name: str, path: Path, progress: Progress) -> list[Talk]:
    """The model's answers to the questions of a file, made where they are missing."""
    folder, questions = options.work / name, read_questions(path)
    about = folder / "questions.json"
    asked = {"file": path.name, "count": len(questions), "model": str(options.model)}
    if about.exists() and json.loads(about.read_text(encoding="utf-8")) != asked:
        raise ValueError(f"{folder}: holds answers to other questions; give another --work, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    engine = EngineConfig(
        model_dir=str(options.model), max_sequences=128, num_threads=options.num_threads, max_context=options.max_length
    )
    answer_all(engine, questions, folder, max_tokens=options.max_answer, progress=progress)
    return load_talks(folder)


def _head(options: Options, shape: DraftShape, vocabulary: Vocabulary) -> tuple[DraftNet, Teacher]:
    model = TargetModel(
        options.model, max_tokens=max(_BATCH_TOKENS, options.max_length), num_threads=options.num_threads
    )
    net = DraftNet(shape)
    return net, Teacher(model, vocabulary, shape.capture_layers)


def _batches(talks: Sequence[Talk], options: Options) -> list[TalkBatch]:
    return [collate(group) for group in batches(talks, max_tokens=_BATCH_TOKENS, max_length=options.max_length)]


def _said(talks: Sequence[Talk], vocab_size: int) -> NDArray[np.int64]:
    """How often the model said each of its tokens."""
    answers = [talk.tokens[talk.answer_start :] for talk in talks]
    return np.bincount(np.concatenate(answers), minlength=vocab_size)


def _ends(config: ModelConfig) -> list[int]:
    """Ends of text, which every answer needs."""
    return list(config.eos_token_ids)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    return Progress(*columns, console=console)
