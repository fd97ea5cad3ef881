"""`sigmoe events`: what happened to the fleet."""

from __future__ import annotations

import argparse

from sigmoe.cli.options import add_connection, connect
from sigmoe.cli.output import print_json
from sigmoe.results import FleetEvent

_DESCRIPTION = """\
Show what happened to the replicas, oldest first: every decision about their number with its reason and figures, and
every start, loss, drain and end. docs/autoscaling.md explains the kinds.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `events` to the command line."""
    parser = commands.add_parser("events", help="what happened to the replicas, and why", description=_DESCRIPTION)
    parser.add_argument("--follow", action="store_true", help="stay, and show each event as it happens")
    parser.add_argument("--after", type=int, default=0, metavar="ID", help="only those after this one")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print each event on a line."""
    if args.after < 0:
        raise ValueError(f"--after: {args.after} is not allowed: the id of an event is, or 0")
    with connect(args) as client:
        for event in client.events(after_id=args.after, follow=args.follow):
            if args.json:
                print_json(event)
            else:
                print(line(event), flush=True)
    return 0


def line(event: FleetEvent) -> str:
    """One event, for people."""
    who = "" if event.replica is None else f"replica {event.replica}"
    figures = " ".join(f"{name}={value:.3g}" for name, value in sorted(event.numbers.items()))
    local = event.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return "  ".join(filter(None, (f"{event.id:5d}", local, f"{event.kind:<15}", f"{who:<11}", event.reason, figures)))
