"""`sigmoe chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from rich.console import Console

from sigmoe.cli.options import add_connection, add_sampling, connect, sampling_of
from sigmoe.cli.output import closing_line, fail, print_json
from sigmoe.client import Client
from sigmoe.errors import InvalidRequest, Overloaded
from sigmoe.results import Chunk

_DESCRIPTION = """\
Talk to the served model. Answers stream as they are generated; Ctrl-C stops an answer, Ctrl-D ends the talk.
/clear forgets the conversation, /undo takes the last turn back. With --json each line of standard input is one
user message and each line of standard output one answer.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `chat` to the command line."""
    parser = commands.add_parser("chat", help="talk to the model", description=_DESCRIPTION)
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    add_sampling(parser)
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read messages until the input ends."""
    opening = [{"role": "system", "content": args.system}] if args.system else []
    turns = list(opening)
    console = Console(highlight=False)
    is_interactive = sys.stdin.isatty() and not args.json
    with connect(args) as client:
        if is_interactive:
            console.print(f"[dim]{client.model().name} at {args.address}; a demonstration, not medical advice.[/dim]")
        for line in _lines(console, is_interactive=is_interactive):
            if line == "/clear":
                turns = list(opening)
            elif line == "/undo":
                turns = turns[:-2] if len(turns) > len(opening) else turns
            elif line:
                turns += _exchange(client, args, [*turns, {"role": "user", "content": line}])
    return 0


def _lines(console: Console, *, is_interactive: bool) -> Iterator[str]:
    while True:
        try:
            yield (console.input("[bold]you>[/bold] ") if is_interactive else input()).strip()
        except EOFError:
            return


def _exchange(client: Client, args: argparse.Namespace, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """One question and its answer; returns the two turns, or none if the server refused the question."""
    stream = client.chat(turns, sampling_of(args))
    if args.json:
        completion = stream.result()
        print_json(completion)
        return [turns[-1], {"role": "assistant", "content": completion.text}]
    chunks: list[Chunk] = []
    start_s = time.monotonic()
    try:
        for chunk in stream:
            chunks.append(chunk)
            print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        stream.cancel()
        print(" [stopped]", end="")
    except (InvalidRequest, Overloaded) as error:
        fail(error, 0, is_json=False)
        return []
    print()
    if sys.stdout.isatty():
        _show_rate(chunks, time.monotonic() - start_s)
    return [turns[-1], {"role": "assistant", "content": "".join(chunk.text for chunk in chunks)}]


def _show_rate(chunks: list[Chunk], elapsed_s: float) -> None:
    usage = chunks[-1].usage if chunks else None
    if usage is not None:
        Console().print(f"[dim]{closing_line(usage, elapsed_s, chunks[-1].finish_reason)}[/dim]")
