"""`sigmoe generate`: continue a text."""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console

from sigmoe.cli.options import add_connection, add_sampling, connect, sampling_of
from sigmoe.cli.output import EXIT_FAILURE, closing_line, print_json
from sigmoe.client import Stream

_DESCRIPTION = """\
Continue a text and stream what comes to the terminal. Without a prompt the text is read from standard input.
The prompt is taken as it is; `sigmoe chat` applies the model's chat template.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `generate` to the command line."""
    parser = commands.add_parser("generate", help="continue a text", description=_DESCRIPTION)
    parser.add_argument("prompt", nargs="?", help="the text to continue (default: standard input)")
    parser.add_argument("--chat", action="store_true", help="ask it as a user's message, with the chat template")
    add_sampling(parser)
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stream one answer."""
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    with connect(args) as client:
        if args.chat:
            stream = client.chat([{"role": "user", "content": prompt}], sampling_of(args))
        else:
            stream = client.generate(prompt, sampling_of(args), return_token_ids=args.json)
        if args.json:
            completion = stream.result()
            print_json(completion)
            return EXIT_FAILURE if any(choice.finish_reason == "error" for choice in completion.choices) else 0
        return _show(stream, num_sequences=args.n or 1)


def _show(stream: Stream, *, num_sequences: int) -> int:
    """Print as it comes; several sequences would mix, so they are printed one after the other at the end."""
    failed = ending = ""
    start_s = time.monotonic()
    if num_sequences == 1:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
            failed = failed or chunk.error
            if chunk.usage is not None:
                ending = closing_line(chunk.usage, time.monotonic() - start_s, chunk.finish_reason)
        print()
        if ending and sys.stderr.isatty():  # not on standard output, which may be kept
            Console(stderr=True, highlight=False).print(f"[dim]{ending}[/dim]")
    else:
        for choice in stream.result().choices:
            print(f"[{choice.index}] {choice.text}")
            failed = failed or choice.error
    if failed:
        print(f"sigmoe: {failed}", file=sys.stderr)
    return EXIT_FAILURE if failed else 0
