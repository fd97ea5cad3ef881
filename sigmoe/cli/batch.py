"""`sigmoe batch`: answer a file of requests, from a server that runs or with ranks of its own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sigmoe.cli.options import add_security, security_of
from sigmoe.cli.serve import has_server, lacks_server
from sigmoe.client import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from cluster.config import Config

_DESCRIPTION = """\
Answer every line of a file in OpenAI's batch format, and write a line for each. Killed at any moment and run again with
the same --input and --output, it goes on where it stopped. docs/batch.md has the whole story.
"""

_EPILOG = """\
examples:
  sigmoe batch --input prompts.jsonl --output out.jsonl                        ask the server on this machine
  sigmoe batch --input day/ --output answers/ --target 10.0.0.5:50051          a folder, another server
  sigmoe batch --input prompts.jsonl --output out.jsonl --model DIR --ranks 8  with ranks of its own
  ray job submit --working-dir . -- sigmoe batch --input prompts.jsonl --output /data/out.jsonl

exit codes: 0 every line has its answer or its error, 1 it could not go on (run it again), 2 wrong input
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `batch` to the command line."""
    parser = commands.add_parser(
        "batch",
        help="answer a file of requests",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", required=True, metavar="PATH", help="file, folder, pattern or fsspec URL")
    parser.add_argument("--output", required=True, metavar="PATH", help="file, or a folder for a file of each input's")
    parser.add_argument("--order", choices=("input", "completed"), default="input", help="of the output's lines")
    parser.add_argument("--concurrency", type=int, metavar="N", help="most requests under way (default: what fits)")
    parser.add_argument("--fail-on-error", action="store_true", help="exit code 1 if any line ended in an error")
    parser.add_argument(
        "--patience", type=float, default=600.0, metavar="SECONDS", help="wait for a server that is gone (%(default)s)"
    )
    server = parser.add_argument_group("a server that runs")
    server.add_argument("--target", metavar="HOST:PORT", help=f"its gateway (default: {DEFAULT_ADDRESS})")
    server.add_argument(
        "--priority", type=int, default=-100, metavar="N", help="below 0 it gives way to others (default: %(default)s)"
    )
    add_security(server)
    own = parser.add_argument_group("ranks of its own, which end with it")
    own.add_argument("--model", metavar="DIR", help="folder of the checkpoint (HF layout)")
    own.add_argument("--config", type=Path, metavar="FILE", help="configuration as for `sigmoe serve`")
    own.add_argument("--ranks", type=int, metavar="N", help="ranks of the group (cluster.ranks)")
    own.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key (repeatable)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the batch; see `cluster.batch_job.run_batch` for the exit codes."""
    if not has_server():
        return lacks_server()
    _check(args)
    from cluster.batch_job import BatchOptions, run_batch
    from cluster.batch_output import Order

    return run_batch(
        BatchOptions(
            input=args.input,
            output=args.output,
            target=args.target or DEFAULT_ADDRESS,
            security=security_of(args),
            config=_config(args) if args.model or args.config else None,
            order=Order(args.order),
            priority=args.priority,
            concurrency=args.concurrency,
            fail_on_error=args.fail_on_error,
            patience_s=args.patience,
        )
    )


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError naming the flag at fault."""
    is_own = bool(args.model or args.config)
    if is_own and args.target:
        raise ValueError("--target: is for a server that runs; --model and --config bring ranks of the job's own")
    if not is_own and (args.ranks is not None or args.set):
        raise ValueError("--ranks, --set: are for ranks of the job's own; --model or --config is missing")
    if args.concurrency is not None and args.concurrency < 1:
        raise ValueError(f"--concurrency: {args.concurrency} is not allowed: 1 or more is")
    if not -100 <= args.priority <= 100:
        raise ValueError(f"--priority: {args.priority} is not allowed: -100 to 100 is")
    if args.patience < 0:
        raise ValueError(f"--patience: {args.patience} is not allowed: 0 or more is")


def _config(args: argparse.Namespace) -> Config:
    """As for a server, but reached by this job alone; in a Ray job the ranks are that cluster's."""
    from cluster import config

    given = ["gateway.host=127.0.0.1", "gateway.port=0", "gateway.metrics_port=null"]
    given += [f"gateway.{key}=null" for key in ("tls_cert", "tls_key", "tls_client_ca", "token_path")]
    if config.ray_job() is not None:
        given.append("cluster.address=auto")
    given += args.set
    if args.model is not None:
        given.append(f"model.path={json.dumps(args.model)}")
    if args.ranks is not None:
        given.append(f"cluster.ranks={args.ranks}")
    return config.load(args.config, given)
