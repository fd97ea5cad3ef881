"""`sigmoe plan`: memory, KV capacity and rates of a model on so many GPUs."""

from __future__ import annotations

import argparse
import re

from sigmoe.cli.serve import has_server, lacks_server

_DESCRIPTION = """\
Say what a model takes and gives on so many GPUs: memory of each rank, KV capacity, decode and prefill rates of a
roofline model, all-to-all traffic. Reads config.json alone; needs neither weights nor a GPU. docs/capacity-plan.md
states every formula and assumption.
"""

_EPILOG = """\
examples:
  sigmoe plan --model examples/antangelmed --gpu h20 --ranks 8 --context 32k
  sigmoe plan --model DIR --gpu h200 --ranks 4 --context 8k --weights fp8 --batch 1,16,64 --json

exit codes: 0 it fits, 1 it does not, 2 wrong input
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the command line."""
    parser = commands.add_parser(
        "plan",
        help="what a model takes and gives on given GPUs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder with the model's config.json")
    parser.add_argument("--gpu", required=True, help="h20, h100, h200, h800, a100 or l40s")
    parser.add_argument("--ranks", required=True, type=int, metavar="N", help="GPUs that share the experts")
    parser.add_argument("--context", type=_tokens, default=32_768, metavar="N", help="of a sequence (default: 32k)")
    parser.add_argument(
        "--batch", type=_numbers, default=(1, 4, 16, 32, 64), metavar="B,B,...", help="sequences a rank decodes at once"
    )
    parser.add_argument("--weights", choices=("bf16", "fp8"), help="in memory (default: as the checkpoint has them)")
    parser.add_argument("--payload", choices=("bf16", "fp8"), default="bf16", help="of rows sent to experts")
    parser.add_argument("--kv", choices=("bf16", "fp8"), default="bf16", help="in the cache: engine.kv_dtype")
    parser.add_argument("--max-rows", type=int, default=2048, metavar="N", help="engine.max_rows_per_step")
    parser.add_argument("--max-sequences", type=int, default=256, metavar="N", help="engine.max_sequences")
    parser.add_argument("--kv-fraction", type=float, default=0.85, metavar="X", help="engine.kv_fraction (%(default)s)")
    parser.add_argument("--block-size", type=int, default=64, metavar="N", help="engine.block_size (%(default)s)")
    parser.add_argument("--ranks-per-node", type=int, default=8, metavar="N", help="that NVLink joins (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; see `cluster.plan.run_plan` for the exit codes."""
    if not has_server():
        return lacks_server()
    for name in ("ranks", "context", "max_rows", "max_sequences", "block_size", "ranks_per_node"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not allowed: 1 or more is")
    if not 0 < args.kv_fraction <= 1:
        raise ValueError(f"--kv-fraction: {args.kv_fraction} is not allowed: above 0 to 1 is")
    from cluster.plan import PlanOptions, run_plan

    return run_plan(
        PlanOptions(
            model=args.model,
            gpu=args.gpu.lower(),
            num_ranks=args.ranks,
            context=args.context,
            batches=args.batch,
            has_fp8_weights=None if args.weights is None else args.weights == "fp8",
            has_fp8_payload=args.payload == "fp8",
            has_fp8_kv=args.kv == "fp8",
            max_rows=args.max_rows,
            max_sequences=args.max_sequences,
            kv_fraction=args.kv_fraction,
            block_size=args.block_size,
            ranks_per_node=args.ranks_per_node,
            is_json=args.json,
        )
    )


def _tokens(text: str) -> int:
    """A number such as 32768 or 32k, which is the same."""
    match = re.fullmatch(r"(\d{1,9})([kK]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens such as 32768 or 32k")
    return int(match[1]) * (1024 if match[2] else 1)


def _numbers(text: str) -> tuple[int, ...]:
    if re.fullmatch(r"\d{1,6}(,\d{1,6})*", text) is None or "0" in text.split(","):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,16,64")
    return tuple(map(int, text.split(",")))
