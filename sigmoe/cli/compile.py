"""`sigmoe compile`: compile the GPU kernels of a model before a server needs them."""

from __future__ import annotations

import argparse
import re

from sigmoe.cli.serve import add_configuration, configuration, has_server, lacks_server

_DESCRIPTION = """\
Compile the kernels that `sigmoe serve` with this configuration launches on a GPU into Triton's cache (~/.triton/cache,
or TRITON_CACHE_DIR), so that the first start does not. It takes neither a GPU nor weights: config.json is enough, and
an EAGLE3 head's, where one drafts. Made part of a container image, the cache must come with the same versions of
sigmoe and Triton, and the server be given the same configuration; whatever is missing then is compiled at the start.
"""

_EPILOG = """\
examples:
  sigmoe compile examples/antangelmed-8xh20.yaml             what each of its ranks launches
  sigmoe compile --model DIR --ranks 8 --processes 4
  TRITON_CACHE_DIR=/opt/kernels sigmoe compile serve.yaml    in an image that sets TRITON_CACHE_DIR when it serves, too
"""

_FLAGS = ("--model", "--dtype", "--max-context", "--ranks")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `compile` to the command line."""
    parser = commands.add_parser(
        "compile",
        help="compile a model's GPU kernels ahead, without a GPU",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_configuration(parser, _FLAGS)
    parser.add_argument("--target", type=_capability, default="sm_90", metavar="SM", help="GPU (default: %(default)s)")
    parser.add_argument("--processes", type=int, metavar="N", help="at a time (default: one a core, at most 16)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile; see `cluster.compile_ahead` for the exit codes."""
    if not has_server():
        return lacks_server()
    if args.processes is not None and args.processes < 1:
        raise ValueError(f"--processes: {args.processes} is not allowed: 1 or more is")
    from cluster.compile_ahead import compile_ahead

    return compile_ahead(configuration(args), args.target, args.processes, is_json=args.json)


def _capability(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"sm_(\d{1,2})(\d)", text)
    if match is None or int(match[1]) < 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no GPU that the kernels are for, such as sm_90")
    return int(match[1]), int(match[2])
