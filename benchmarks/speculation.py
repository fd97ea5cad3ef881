"""Measure drafting in process: tokens per second and tau by batch size, text and draft length.

    python -m benchmarks.speculation --model models/sigmoe-demo [--method eagle3] [--seconds 8] [--out FILE]

In every cell each setting keeps `batch` requests under way, a new one for each that ends. The settings' engines take
turns of a tenth of a second, forwards and backwards, so that a machine that slows down slows all of them; a rate is the
tokens of an engine's turns over their seconds, a gain is that rate over plain decoding's, its error is the jackknife's
over the turns. What an engine does in its first seconds of a cell is not counted.
Easy text is the most likely answer to a question; hard text is drawn at temperature 1.2, which drafts rarely meet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.run import machine
from cluster.chat_template import ChatTemplate
from cluster.tokenizer import Tokenizer
from engine.build import build_engine
from engine.config import EngineConfig, Precision, SpeculationConfig
from engine.engine import Engine
from scheduler.request import DraftMethod, Request, SamplingParams

ROOT = Path(__file__).parent
PROMPTS = ROOT.parent / "sigmoe" / "loadtest" / "data" / "medical_questions.jsonl"
BATCHES = (1, 4, 16, 32, 64)
FIXED = (0, 1, 2, 3, 5)  # 0 is plain decoding, without a draft model at all
AGAIN = -2  # a second engine that drafts nothing: what its gain differs from 1 by is what engines differ by anyway
ADAPTIVE = -1
MAX_TOKENS = 96
TURN_S = 0.1
_PARTS = 16  # groups of turns, of which one is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """How answers are drawn."""

    name: str
    temperature: float


TEXTS = (Text(name="easy", temperature=0.0), Text(name="hard", temperature=1.2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One setting at one batch size on one kind of text."""

    text: str
    batch: int
    drafts: int  # -1: adaptive
    tokens_per_s: float
    gain: float  # over plain decoding
    gain_error: float  # standard error of it
    tau: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What an engine did in one of its turns."""

    seconds: float
    num_tokens: int
    num_rounds: int
    num_committed: int


def read_prompts(path: Path, model_dir: Path) -> list[tuple[int, ...]]:
    """Token ids of the first turns, as a chat."""
    tokenizer, template = Tokenizer.from_dir(model_dir), ChatTemplate.from_dir(model_dir)
    with path.open(encoding="utf-8") as lines:
        questions = [json.loads(line)["turns"][0] for line in lines]
    rendered = [template.render([{"role": "user", "content": question}]) for question in questions]
    return [tuple(tokenizer.encode_now(text)) for text in rendered]


def build(options: argparse.Namespace, drafts: int) -> Engine:
    """An engine that drafts so many tokens, or as many as it finds best."""
    speculation = SpeculationConfig(
        method=DraftMethod(options.method) if drafts not in (0, AGAIN) else DraftMethod.NONE,
        draft_dir=str(options.draft or options.model / "eagle3"),
        max_drafts=max(FIXED) if drafts == ADAPTIVE else max(drafts, 0),
        adaptive=drafts == ADAPTIVE,
    )
    return build_engine(
        EngineConfig(
            model_dir=str(options.model),
            precision=Precision(options.dtype),
            max_sequences=max(options.batches),
            max_context=1024,
            speculation=speculation,
            prefix_cache=False,
        )
    )


class ClosedLoop:
    """An engine that always has `batch` requests of one kind of text."""

    def __init__(self, engine: Engine, prompts: Sequence[tuple[int, ...]], batch: int, text: Text) -> None:
        self._engine, self._prompts, self._batch, self._text = engine, prompts, batch, text
        self._num_asked = self._num_live = 0

    def turn(self, seconds: float) -> Slice:
        """Step for so long."""
        num_tokens, before = 0, self._engine.stats().drafts
        start_s = now_s = time.perf_counter()
        while now_s - start_s < seconds:
            while self._num_live < self._batch:
                self._ask()
            for delta in self._engine.step():
                assert not delta.error, delta.error
                num_tokens += len(delta.token_ids)
                self._num_live -= delta.finish_reason is not None
            now_s = time.perf_counter()
        after = self._engine.stats().drafts
        return Slice(
            seconds=now_s - start_s,
            num_tokens=num_tokens,
            num_rounds=after.num_rounds - before.num_rounds,
            num_committed=after.num_committed - before.num_committed,
        )

    def end(self) -> None:
        """Drop what is under way."""
        for number in range(self._num_asked):
            self._engine.abort(self._name(number))
        while self._engine.has_work:
            self._engine.step()

    def _ask(self) -> None:
        number = self._num_asked
        sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=self._text.temperature, seed=number)
        prompt = self._prompts[number % len(self._prompts)]
        self._engine.add(Request(request_id=self._name(number), prompt=prompt, sampling=sampling))
        self._num_asked += 1
        self._num_live += 1

    def _name(self, number: int) -> str:
        return f"{self._text.name}/{self._batch}/{number}"


def measure(options: argparse.Namespace, console: Console) -> list[Cell]:
    """Every cell."""
    prompts = read_prompts(options.prompts, options.model)
    engines = {drafts: build(options, drafts) for drafts in dict.fromkeys((0, *options.drafts))}
    cells = []
    for text in TEXTS:
        for batch in options.batches:
            loops = {drafts: ClosedLoop(engine, prompts, batch, text) for drafts, engine in engines.items()}
            for loop in loops.values():
                loop.turn(options.warm_up)
            turns: dict[int, list[Slice]] = {drafts: [] for drafts in engines}
            for number in range(round(options.seconds / TURN_S)):
                for drafts in sorted(loops, reverse=number % 2 == 1):
                    turns[drafts].append(loops[drafts].turn(TURN_S))
            for loop in loops.values():
                loop.end()
            cells += [_cell(text, batch, drafts, turns) for drafts in engines]
            shown = "  ".join(f"{_name(c.drafts)} {c.tokens_per_s:.0f} ({c.gain:.2f})" for c in cells[-len(engines) :])
            console.print(f"{text.name} batch {batch}: {shown}", highlight=False)
    return cells


def _cell(text: Text, batch: int, drafts: int, turns: dict[int, list[Slice]]) -> Cell:
    mine, plain = turns[drafts], turns[0]
    num_rounds, num_committed = sum(s.num_rounds for s in mine), sum(s.num_committed for s in mine)
    # Without each group of turns: what remains tells how much the gain hangs on one of them.
    parts = [_rate(_without(mine, part)) / _rate(_without(plain, part)) for part in range(_PARTS)]
    spread = statistics.pvariance(parts) * (_PARTS - 1)
    return Cell(
        text=text.name,
        batch=batch,
        drafts=drafts,
        tokens_per_s=_rate(mine),
        gain=_rate(mine) / _rate(plain),
        gain_error=math.sqrt(spread),
        tau=num_committed / num_rounds if num_rounds else None,
    )


def _rate(turns: Sequence[Slice]) -> float:
    return sum(s.num_tokens for s in turns) / sum(s.seconds for s in turns)


def _without(turns: Sequence[Slice], part: int) -> list[Slice]:
    size = len(turns) / _PARTS
    return [s for number, s in enumerate(turns) if int(number / size) != part]


def _name(drafts: int) -> str:
    return {ADAPTIVE: "adaptive", AGAIN: "k=0 again"}.get(drafts, f"k={drafts}")


def table(cells: list[Cell]) -> Table:
    """Rows are text and batch, columns the settings: rate, gain over plain, tau."""
    settings = list(dict.fromkeys(cell.drafts for cell in cells))
    shown = Table("text", "batch", *map(_name, settings), "adaptive / best fixed")
    for text, batch in dict.fromkeys((cell.text, cell.batch) for cell in cells):
        row = {cell.drafts: cell for cell in cells if (cell.text, cell.batch) == (text, batch)}
        best = max(row[drafts].gain for drafts in settings if drafts >= 0)
        entries = [
            f"{c.tokens_per_s:.0f} x{c.gain:.3f}"
            + (f" ±{c.gain_error:.3f}" if c.drafts else "")
            + (f" tau {c.tau:.2f}" if c.tau else "")
            for c in row.values()
        ]
        shown.add_row(text, str(batch), *entries, f"{row[ADAPTIVE].gain / best:.3f}" if ADAPTIVE in row else "")
    return shown


def main() -> None:
    """Command line; writes JSON, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT.parent / "models" / "sigmoe-demo")
    parser.add_argument("--method", choices=[m.value for m in DraftMethod if m.value != "none"], default="eagle3")
    parser.add_argument("--draft", type=Path, help="folder of the EAGLE3 head (default: eagle3 in the model's)")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="JSON lines with a list of `turns`")
    parser.add_argument("--dtype", choices=[p.value for p in Precision], default=Precision.BF16.value)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each setting in each cell")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before, of each setting in each cell")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="sequences at once")
    parser.add_argument(
        "--drafts", type=int, nargs="+", default=(*FIXED, ADAPTIVE, AGAIN), help="at a time; -1: adaptive, -2: 0 again"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console = Console(width=200)
    cells = measure(options, console)
    report = {
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "model": options.model.name,
        "method": options.method,
        "dtype": options.dtype,
        "max_tokens": MAX_TOKENS,
        "seconds": options.seconds,
        "warm_up": options.warm_up,
        "texts": [dataclasses.asdict(text) for text in TEXTS],
        "cells": [asdict(cell) for cell in cells],
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(table(cells))


if __name__ == "__main__":
    main()
