"""Train the demonstration model: `python -m training.train --data FOLDER --out FOLDER --minutes M [--resume]`.

Kill it at any time and start it again with `--resume`: it goes on from the newest checkpoint, five minutes back
at most.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from training.chat import EOS
from training.checkpoint import load_checkpoint, newest_checkpoint
from training.corpus import Sampler, load_group
from training.evaluate import PROBES, answer_greedily, held_out_loss
from training.net import Net
from training.schedule import MAIN_SHARES, Budget
from training.shape import PRESETS
from training.tokenizer import load_tokenizer, token_id
from training.trainer import Plan, Trainer


def log(line: str) -> None:
    """One line per event, flushed: the run is watched through a file."""
    print(f"time={time.strftime('%H:%M:%S')} {line}", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the demonstration model on two CPU cores.")
    parser.add_argument("--data", type=Path, required=True, help="folder written by training.data")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--part", choices=["trunk", "mtp"], default="trunk", help="mtp needs a finished trunk in --out")
    parser.add_argument("--minutes", type=float, required=True, help="training time of this part, over all resumes")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of this part")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo", help="smoke: a tiny network for tests")
    parser.add_argument("--checkpoint-every", type=float, default=300.0, help="seconds between checkpoints")
    parser.add_argument("--probe-tokens", type=int, default=60, help="longest sample answer after a checkpoint")
    parser.add_argument("--rows", type=int, default=16, help="rows per step")
    parser.add_argument("--row", type=int, default=256, help="tokens per row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="compile the layers (needs a C++ compiler)")
    return parser.parse_args(argv)


def make_trainer(args: argparse.Namespace) -> Trainer:
    """The network, fresh or from a checkpoint, with its data."""
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer(args.data)
    net = Net(replace(PRESETS[args.preset], vocab_size=tokenizer.get_vocab_size()))
    groups = {name: load_group(args.data, name) for name in MAIN_SHARES}
    sampler = Sampler(groups, row=args.row, pad=token_id(tokenizer, EOS), seed=args.seed)
    plan = Plan(
        part=args.part,
        budget=Budget(args.minutes * 60),
        rows=args.rows,
        out=args.out,
        checkpoint_every_s=args.checkpoint_every,
    )
    newest = newest_checkpoint(args.out, args.part) if args.resume else None
    if args.part == "mtp" and newest is None:
        trunk = newest_checkpoint(args.out, "trunk")
        if trunk is None:
            sys.exit(f"--part mtp: no trunk checkpoint in {args.out}; train the trunk first")
        net.load_state_dict(load_checkpoint(trunk)["net"])
    trainer = Trainer(net, sampler, plan, log)
    if newest is not None:
        trainer.load_state_dict(load_checkpoint(newest))
        log(f"resumed={newest.name} step={trainer.at.step} elapsed_s={trainer.at.elapsed_s:.0f}")
    if args.compile:
        for layer in [*net.layers, net.mtp.layer]:
            layer.compile(dynamic=False)
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    """Train one part to the end of its minutes."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    tokenizer, held = load_tokenizer(args.data), load_group(args.data, "heldout")
    trainer = make_trainer(args)

    def report() -> None:
        with torch.compiler.set_stance("force_eager"):  # probes have every length; compiling each would take minutes
            loss = held_out_loss(trainer.net, held, row=args.row, max_rows=24)
            log(f"heldout_answer_nats={loss.nats:.3f} bits_per_byte={loss.bits:.3f}")
            for question in PROBES:
                answer = answer_greedily(trainer.net, tokenizer, question, args.probe_tokens)
                log(f"question={question!r} answer={answer!r}")

    trainer.run(report)
    report()


if __name__ == "__main__":
    main()
