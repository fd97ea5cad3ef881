"""`sigmoe serve`: start a group of ranks and the gateway in front of it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from sigmoe.cli.options import add_security, security_of
from sigmoe.cli.output import EXIT_FAILURE

if TYPE_CHECKING:
    from cluster.config import Config

_EPILOG = """\
examples:
  sigmoe serve examples/demo.yaml                    two ranks with the model that ships with sigmoe
  sigmoe serve --model DIR --ranks 2 --port 50051    the same from flags
  sigmoe serve demo.yaml --set engine.max_sequences=64 --set gateway.max_requests=500
  sigmoe serve demo.yaml --dry-run                   who holds which experts, memory, KV capacity; starts nothing
  sigmoe serve demo.yaml --plan-scale                how many replicas would be wanted at which load; starts nothing

Every key is described in docs/configuration.md; each can be set by --set section.key=value too.
Ctrl-C stops the server and everything it started.
"""

# flag, key of the configuration, help
_FLAGS = (
    ("--model", "model.path", "folder of the checkpoint (HF layout)"),
    ("--dtype", "model.dtype", "auto, bfloat16 or float32"),
    ("--max-context", "model.max_context", "most tokens of prompt and output together"),
    ("--ranks", "cluster.ranks", "ranks of the group; each holds a share of the experts"),
    ("--executor", "cluster.executor", "ray, or local to run without Ray"),
    ("--device", "cluster.device", "auto, cpu or cuda"),
    ("--host", "gateway.host", "address to listen on"),
    ("--port", "gateway.port", "port to listen on; 0: any free one"),
)
_TEXTS = ("model.path", "gateway.host")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    parser = commands.add_parser(
        "serve",
        help="start a cluster and serve a model",
        description="Start a group of ranks, each with its share of the experts, and a gRPC gateway in front of it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_configuration(parser, [flag for flag, *_ in _FLAGS])
    parser.add_argument("--dry-run", action="store_true", help="print the resolved plan and start nothing")
    parser.add_argument(
        "--plan-scale", action="store_true", help="print how many replicas would be wanted when, and why; start nothing"
    )
    parser.add_argument("--target", metavar="HOST:PORT", help="with --plan-scale: judge the load of a running server")
    add_security(parser.add_argument_group("with --target"))
    parser.add_argument("--json", action="store_true", help="print JSON, one document a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; see `cluster.launch.serve` for the exit codes."""
    if not has_server():
        return lacks_server()
    if args.target is not None and not args.plan_scale:
        raise ValueError("--target: belongs to --plan-scale")
    config = configuration(args)
    if args.dry_run:
        from cluster.dry_run import dry_run

        return dry_run(config, is_json=args.json)
    if args.plan_scale:
        from cluster.scale_plan import plan_scale

        return plan_scale(config, target=args.target, security=security_of(args), is_json=args.json)
    from cluster.launch import serve

    return serve(config, is_json=args.json)


def add_configuration(parser: argparse.ArgumentParser, flags: Collection[str]) -> None:
    """The configuration file, these of the flags for its keys, and --set."""
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="configuration file")
    for flag, key, text in _FLAGS:
        if flag in flags:
            parser.add_argument(flag, dest=key, metavar=flag.strip("-").upper(), help=f"{text} ({key})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key (repeatable)")


def configuration(args: argparse.Namespace) -> Config:
    """What the options of `add_configuration` say. Raises ConfigMistake."""
    from cluster import config

    given = [(key, vars(args)[key]) for _, key, _ in _FLAGS if vars(args).get(key) is not None]
    # A folder's or host's name is text even where YAML would see a number in it.
    flags = [f"{key}={json.dumps(value) if key in _TEXTS else value}" for key, value in given]
    return config.load(args.config, [*args.set, *flags])


def lacks_server() -> int:
    """Say what is missing; returns the exit code."""
    print(
        "sigmoe: the server's parts are not installed: serve from a checkout of sigmoe, "
        "after `pip install -e '.[server]'` there",
        file=sys.stderr,
    )
    return EXIT_FAILURE


def has_server() -> bool:
    """Whether this is more than the client: its wheel holds neither the rooms nor what they import."""
    if importlib.util.find_spec("cluster") is None or importlib.util.find_spec("torch") is None:
        return False
    return importlib.util.find_spec("cluster.config") is not None
