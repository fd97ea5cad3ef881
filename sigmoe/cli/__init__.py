"""The `sigmoe` command: one module for each sub-command, each with `add_parser` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import sigmoe
from sigmoe.cli import batch, chat, compile, events, generate, loadtest, plan, serve, status, train_draft
from sigmoe.cli.output import EXIT_INTERRUPTED, exit_code_of, fail
from sigmoe.errors import SigmoeError

_EPILOG = """\
examples:
  sigmoe serve examples/demo.yaml              start a cluster on this machine
  sigmoe chat                                  talk to it
  sigmoe generate "Asthma is" --max-tokens 40  continue a text
  sigmoe status                                ranks, KV cache, queues, expert load
  sigmoe events --follow                       what happens to the replicas, and why
  sigmoe loadtest --concurrency 1,8,32         measure it under load
  sigmoe batch --input prompts.jsonl --output out.jsonl   answer a file of requests
  sigmoe plan --model DIR --gpu h20 --ranks 8  what a model takes and gives on given GPUs
  sigmoe compile serve.yaml                    its GPU kernels ahead, on any machine
  sigmoe train-draft --help                    train a head that drafts tokens for a model

exit codes: 0 done, 1 the server failed, 2 wrong input, 3 nothing answers there, 4 the server is full,
            5 the deadline passed, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (SigmoeError, ValueError) as error:
        return fail(error, exit_code_of(error), is_json=getattr(args, "json", False))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`| head`): python would complain again while flushing at exit.
        sys.stderr.close()
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="sigmoe",
        description="Serve and use sigmoid-routed mixture-of-experts language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sigmoe {sigmoe.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for module in (serve, generate, chat, status, events, loadtest, batch, plan, compile, train_draft):
        module.add_parser(commands)
    return parser
