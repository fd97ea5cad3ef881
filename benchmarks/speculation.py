"""Measure drafting in process: tokens per second and tau by batch size, text and draft length.

    python -m benchmarks.speculation --model models/sigmoe-demo [--method eagle3] [--runs 3] [--out FILE]

Every cell keeps `batch` requests under way until all prompts are answered. Settings take turns within a run, so that
a machine that slows down slows all of them; rates are medians over the runs, and a setting's gain is the median of its
rate over plain decoding's in the same run.
Easy text is the most likely answer to a question; hard text is drawn at temperature 1.2, which drafts rarely meet.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
ADAPTIVE = -1
MAX_TOKENS = 96


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
    tokens_per_s: float  # median
    gain: float  # over plain decoding
    tau: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of one cell."""

    tokens_per_s: float
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
        method=DraftMethod(options.method) if drafts else DraftMethod.NONE,
        draft_dir=str(options.draft or options.model / "eagle3"),
        max_drafts=max(FIXED) if drafts == ADAPTIVE else drafts,
        adaptive=drafts == ADAPTIVE,
    )
    return build_engine(
        EngineConfig(
            model_dir=str(options.model),
            precision=Precision(options.dtype),
            max_sequences=max(BATCHES),
            max_context=1024,
            speculation=speculation,
            prefix_cache=False,
        )
    )


def run_once(engine: Engine, prompts: Sequence[tuple[int, ...]], batch: int, text: Text, run: int) -> Outcome:
    """Answer all prompts, `batch` at a time."""
    waiting = [
        Request(
            request_id=f"{text.name}/{batch}/{run}/{index}",
            prompt=prompt,
            sampling=SamplingParams(max_tokens=MAX_TOKENS, temperature=text.temperature, seed=index),
        )
        for index, prompt in enumerate(prompts)
    ][::-1]
    num_tokens, num_live = 0, 0
    before = engine.stats().drafts
    start_s = time.perf_counter()
    while waiting or num_live:
        while waiting and num_live < batch:
            engine.add(waiting.pop())
            num_live += 1
        for delta in engine.step():
            assert not delta.error, delta.error
            num_tokens += len(delta.token_ids)
            num_live -= delta.finish_reason is not None
    elapsed_s = time.perf_counter() - start_s
    after = engine.stats().drafts
    return Outcome(
        tokens_per_s=num_tokens / elapsed_s,
        num_rounds=after.num_rounds - before.num_rounds,
        num_committed=after.num_committed - before.num_committed,
    )


def measure(options: argparse.Namespace, console: Console) -> list[Cell]:
    """Every cell."""
    prompts = read_prompts(options.prompts, options.model)
    engines = {drafts: build(options, drafts) for drafts in (*FIXED, ADAPTIVE)}
    cells = []
    for text in TEXTS:
        for batch in BATCHES:
            count = max(options.least, options.waves * batch)
            asked = list(itertools.islice(itertools.cycle(prompts), count))
            outcomes: dict[int, list[Outcome]] = {drafts: [] for drafts in engines}
            for run in range(options.runs + 1):
                for drafts, engine in engines.items():
                    outcomes[drafts].append(run_once(engine, asked, batch, text, run))
            warm = {drafts: results[1:] for drafts, results in outcomes.items()}
            cells += [_cell(text, batch, drafts, warm) for drafts in engines]
            shown = "  ".join(f"{_name(c.drafts)} {c.tokens_per_s:.0f} ({c.gain:.2f})" for c in cells[-len(engines) :])
            console.print(f"{text.name} batch {batch}: {shown}", highlight=False)
    return cells


def _cell(text: Text, batch: int, drafts: int, outcomes: dict[int, list[Outcome]]) -> Cell:
    mine, plain = outcomes[drafts], outcomes[0]
    num_rounds, num_committed = sum(o.num_rounds for o in mine), sum(o.num_committed for o in mine)
    return Cell(
        text=text.name,
        batch=batch,
        drafts=drafts,
        tokens_per_s=statistics.median(o.tokens_per_s for o in mine),
        gain=statistics.median(o.tokens_per_s / p.tokens_per_s for o, p in zip(mine, plain, strict=True)),
        tau=num_committed / num_rounds if num_rounds else None,
    )


def _name(drafts: int) -> str:
    return "adaptive" if drafts == ADAPTIVE else f"k={drafts}"


def table(cells: list[Cell]) -> Table:
    """Rows are text and batch, columns the settings: rate, gain over plain, tau."""
    settings = list(dict.fromkeys(cell.drafts for cell in cells))
    shown = Table("text", "batch", *map(_name, settings), "adaptive / best fixed")
    for text, batch in dict.fromkeys((cell.text, cell.batch) for cell in cells):
        row = {cell.drafts: cell for cell in cells if (cell.text, cell.batch) == (text, batch)}
        best = max(row[drafts].gain for drafts in settings if drafts != ADAPTIVE)
        entries = [f"{c.tokens_per_s:.0f} x{c.gain:.2f}" + (f" tau {c.tau:.2f}" if c.tau else "") for c in row.values()]
        shown.add_row(text, str(batch), *entries, f"{row[ADAPTIVE].gain / best:.2f}")
    return shown


def main() -> None:
    """Command line; writes JSON, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT.parent / "models" / "sigmoe-demo")
    parser.add_argument("--method", choices=[m.value for m in DraftMethod if m.value != "none"], default="eagle3")
    parser.add_argument("--draft", type=Path, help="folder of the EAGLE3 head (default: eagle3 in the model's)")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="JSON lines with a list of `turns`")
    parser.add_argument("--dtype", choices=[p.value for p in Precision], default=Precision.BF16.value)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--least", type=int, default=32, help="prompts of a cell, at least")
    parser.add_argument("--waves", type=int, default=8, help="prompts of a cell for each place in the batch")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console = Console(width=160)
    cells = measure(options, console)
    report = {
        "machine": machine(),
        "model": options.model.name,
        "method": options.method,
        "dtype": options.dtype,
        "max_tokens": MAX_TOKENS,
        "texts": [dataclasses.asdict(text) for text in TEXTS],
        "cells": [asdict(cell) for cell in cells],
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(table(cells))


if __name__ == "__main__":
    main()
