"""From a model and a list of questions to a trained head: what `sigmoe train-draft` runs."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.tokenizer import Tokenizer
from engine.build import chosen_device
from engine.config import EngineConfig
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from training.draft.answers import AnswersOf, LoadedModel, Talk, answer_all, read_questions, read_talks
from training.draft.chain import Teacher
from training.draft.data import batches, collate, endless
from training.draft.export import export_head
from training.draft.fingerprint import fingerprint
from training.draft.net import DraftNet
from training.draft.ranks import Rank, run_ranks
from training.draft.served import ServedModel
from training.draft.shape import LAYOUTS, DraftShape, draft_config
from training.draft.target import TargetModel
from training.draft.trainer import Trainer, evaluate
from training.draft.vocabulary import always_drafted, choose_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was told; see its help."""

    model: Path
    questions: Path
    held_out: Path
    out: Path
    work: Path
    server: str | None
    answers_only: bool
    minutes: float
    vocab_size: int
    width: int | None
    capture_layers: tuple[int, ...] | None
    num_steps: int
    max_answer: int
    max_length: int
    batch_tokens: int
    ranks: int
    device: str
    num_threads: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Questions of one purpose, and the temperatures that their answers take in turn."""

    name: str
    flag: str
    questions: Callable[[Options], Path]
    temperatures: tuple[float, ...]


# Mostly what the model says, sometimes what it might say; a head is measured on what it says.
_ANSWERS = _Part("answers", "--questions", lambda options: options.questions, (0.0, 0.0, 0.8))
_HELD_OUT = _Part("held-out", "--held-out", lambda options: options.held_out, (0.0,))


def train(options: Options) -> None:
    """Answers, training, evaluation, export; every stage goes on where a kill left it.

    Raises ValueError; CheckpointError and OutOfMemory for a model that cannot be loaded.
    """
    device = chosen_device(options.device)
    _shape(options, ModelConfig.from_dir(options.model))
    torch.set_num_threads(options.num_threads)
    with _progress(Console()) as progress:
        for part in (_ANSWERS, _HELD_OUT):
            _answer(options, part, progress)
            if not any(len(talk.tokens) > talk.answer_start + 1 for talk in read_talks(options.work / part.name)):
                raise ValueError(f"{part.flag}: the model answers none of them with more than a token")
    if options.answers_only:
        return
    if device.type == "cuda":
        gc.collect()  # of the model that answered: its ranks come next
        torch.cuda.empty_cache()
    run_ranks(options.ranks, device, train_rank, options)


def train_rank(place: Rank, options: Options) -> None:
    """One rank's part, once there are answers."""
    console = Console(quiet=not place.is_first)
    num_threads = max(options.num_threads // place.size, 1)
    torch.set_num_threads(num_threads)
    torch.manual_seed(options.seed)
    talks, held_out = (list(read_talks(options.work / part.name)) for part in (_ANSWERS, _HELD_OUT))
    config = ModelConfig.from_dir(options.model)
    counts = _said(talks, config.vocab_size)
    shape = _shape(options, config)
    forced = always_drafted(Tokenizer.from_dir(options.model), config.eos_token_ids, _talked(talks))
    vocabulary = choose_vocabulary(counts, shape.vocab_size, forced)
    console.print(f"{len(talks)} answers, {counts.sum():,} tokens; the vocabulary covers {vocabulary.coverage:.2%}")
    max_tokens = max(options.batch_tokens, options.max_length)
    model = TargetModel(options.model, max_tokens=max_tokens, num_threads=num_threads, place=place)
    net, teacher = DraftNet(shape).to(place.device), Teacher(model, vocabulary, shape.capture_layers)
    trainer = Trainer(net, teacher, out=options.work, minutes=options.minutes, num_steps=options.num_steps, place=place)
    if trainer.resume():
        console.print(f"going on from step {trainer.step}")
    groups = batches(talks, max_tokens=options.batch_tokens, max_length=options.max_length)
    with _progress(console) as progress:
        trainer.run(endless(groups, options.seed, trainer.step, place), progress)
    held_out_groups = batches(held_out, max_tokens=options.batch_tokens, max_length=options.max_length)
    unseen = [collate(group) for group in held_out_groups]
    for num_drafts in dict.fromkeys((3, options.num_steps)):
        score = evaluate(teacher, net, unseen, num_drafts, place)
        console.print(f"held-out questions, {num_drafts} drafts a round: {score}", highlight=False)
    if not place.is_first:
        return
    for layout in LAYOUTS:
        export_head(net, vocabulary, options.out if layout == LAYOUTS[0] else options.work / layout, layout)
    console.print(f"wrote {options.out} ({LAYOUTS[0]} layout) and {options.work / LAYOUTS[1]}")


def _shape(options: Options, config: ModelConfig) -> DraftShape:
    """Raises ConfigError for a head that no engine would load."""
    shape = DraftShape.beside(
        config, vocab_size=options.vocab_size, width=options.width, capture_layers=options.capture_layers
    )
    for layout in LAYOUTS:
        Eagle3Config.from_dict(draft_config(shape, layout), config)
    return shape


def _answer(options: Options, part: _Part, progress: Progress) -> None:
    """Make the model's answers to the questions of a part, where they are missing."""
    folder, questions = options.work / part.name, read_questions(part.questions(options))
    about = folder / "about.json"
    asked = {
        "list of questions": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
        "model": fingerprint(options.model),
        "max_answer": options.max_answer,
        "max_length": options.max_length,
    }
    if about.exists():
        for name, theirs in json.loads(about.read_text(encoding="utf-8")).items():
            if asked.get(name) != theirs:
                raise ValueError(f"{folder}: holds answers of another {name}; give another --work, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(asked) + "\n", encoding="utf-8")

    def load() -> AnswersOf:
        if options.server is not None:
            return ServedModel(options.server, options.model)
        return LoadedModel(
            EngineConfig(
                model_dir=str(options.model),
                device=options.device,
                max_sequences=128,
                num_threads=options.num_threads,
                max_context=options.max_length,
            )
        )

    answer_all(
        load,
        options.model,
        questions,
        folder,
        temperatures=part.temperatures,
        max_tokens=options.max_answer,
        progress=progress,
    )


def _said(talks: Sequence[Talk], vocab_size: int) -> NDArray[np.int64]:
    """How often the model said each of its tokens."""
    answers = [talk.tokens[talk.answer_start :] for talk in talks]
    return np.bincount(np.concatenate(answers), minlength=vocab_size)


def _talked(talks: Sequence[Talk]) -> list[int]:
    """Every token of the talks, once."""
    tokens: list[int] = np.unique(np.concatenate([talk.tokens for talk in talks])).tolist()
    return tokens


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    return Progress(*columns, console=console)
