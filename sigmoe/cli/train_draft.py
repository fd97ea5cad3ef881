"""`sigmoe train-draft`: train an EAGLE3 head for a model."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from sigmoe.cli.output import EXIT_FAILURE

_DESCRIPTION = """\
Train a small head that drafts tokens ahead of a model (EAGLE3), from the model's own answers to your questions.
Every stage goes on where it was stopped, as long as --work stays the same. docs/training-drafts.md has the recipe.
"""

_ABOVE_ZERO = (
    "minutes",
    "vocab_size",
    "width",
    "steps",
    "max_answer",
    "max_length",
    "batch_tokens",
    "ranks",
    "threads",
)

_EPILOG = """\
example:
  sigmoe train-draft --model models/sigmoe-demo --questions train.jsonl --held-out unseen.jsonl --out head --minutes 25
  sigmoe serve --model models/sigmoe-demo --set speculation.draft_path=head
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train-draft` to the command line."""
    parser = commands.add_parser(
        "train-draft",
        help="train a draft head for a model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint (HF layout)")
    parser.add_argument(
        "--questions", type=Path, required=True, help='what to ask it: JSON lines of {"turns": [...]}, or lines of text'
    )
    parser.add_argument("--held-out", type=Path, required=True, help="the same, for the evaluation alone")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head, in SGLang's layout")
    parser.add_argument("--work", type=Path, help="folder for answers and checkpoints (default: OUT.work)")
    parser.add_argument("--minutes", type=float, default=25.0, help="training time (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=32000, help="tokens it can draft (default: %(default)s)")
    parser.add_argument("--width", type=int, help="of its FFN (default: 3.5 times the model's hidden size)")
    parser.add_argument(
        "--capture-layers", metavar="I,J,K", help="layers whose inputs it sees (default: 2, the middle, the last but 2)"
    )
    parser.add_argument("--steps", type=int, default=5, help="drafts a chain is trained for (default: %(default)s)")
    parser.add_argument("--max-answer", type=int, default=160, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a talk (default: %(default)s)")
    parser.add_argument(
        "--batch-tokens", type=int, default=4096, help="tokens of a step on each rank (default: %(default)s)"
    )
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="a running `sigmoe serve` of this model, to answer the questions"
    )
    parser.add_argument(
        "--answers-only", action="store_true", help="stop behind the answers: their server's GPUs are for the training"
    )
    parser.add_argument(
        "--ranks", type=int, default=1, help="processes that share the experts and the talks (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="rank r has GPU r (default: GPUs if there are any)",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=20, help="of everything drawn (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    if importlib.util.find_spec("training") is None or importlib.util.find_spec("torch") is None:
        print("sigmoe: training needs a checkout of sigmoe, after `pip install -e '.[server]'` there", file=sys.stderr)
        return EXIT_FAILURE
    _check(args)
    from training.draft.train import Options, train

    train(
        Options(
            model=args.model,
            questions=args.questions,
            held_out=args.held_out,
            out=args.out,
            work=args.work or args.out.with_name(f"{args.out.name}.work"),
            minutes=args.minutes,
            vocab_size=args.vocab_size,
            width=args.width,
            capture_layers=_layers(args.capture_layers),
            num_steps=args.steps,
            max_answer=args.max_answer,
            max_length=args.max_length,
            batch_tokens=args.batch_tokens,
            server=args.server,
            answers_only=args.answers_only,
            ranks=args.ranks,
            device=args.device,
            num_threads=args.threads,
            seed=args.seed,
        )
    )
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError naming the flag at fault."""
    for flag, path in (("--questions", args.questions), ("--held-out", args.held_out)):
        if not path.is_file():
            raise ValueError(f"{flag}: {path} is no file")
    for flag in _ABOVE_ZERO:
        given = getattr(args, flag)
        if given is not None and given <= 0:
            raise ValueError(f"--{flag.replace('_', '-')}: {given} is not allowed: above 0 is")


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--capture-layers: {text!r} is not of the form I,J,K") from None
