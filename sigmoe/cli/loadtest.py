"""`sigmoe loadtest`: measure a server under load."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sigmoe.cli import loadtest_options
from sigmoe.cli.options import security_of
from sigmoe.cli.output import EXIT_FAILURE, EXIT_INTERRUPTED, fail
from sigmoe.errors import SigmoeError
from sigmoe.status import NO_RETRY

_WIDTH = 120  # of tables where nobody says how wide the paper is

if TYPE_CHECKING:
    from sigmoe.loadtest.display import LiveView
    from sigmoe.loadtest.document import Document

_EPILOG = """\
examples:
  sigmoe loadtest --concurrency 1,2,4,8,16,32 --out result.json --html report.html
  sigmoe loadtest --rate 5 --arrivals gamma --burstiness 4 --duration 60
  sigmoe loadtest --workload random --input-tokens lognormal:256,0.8 --output-tokens uniform:32,256 --concurrency 64
  sigmoe loadtest --trace traffic.jsonl --workload chats.jsonl
  sigmoe loadtest --rate 10 --slo 'ttft < 500ms' --slo 'tpot < 50ms' --fail-if 'ttft_p99 > 500ms'
  sigmoe loadtest --find-max 'tpot_p99 < 50ms' --find-max 'ttft_p99 < 1s'
  sigmoe loadtest compare before.json after.json
  sigmoe loadtest report result.json --html report.html

exit codes: 0 done, 1 the run failed, no request was answered, or a --fail-if is true, 2 wrong input,
            130 interrupted (what was measured is still written)
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `loadtest` to the command line."""
    parser = commands.add_parser(
        "loadtest",
        help="measure a server under load",
        description="Send requests as a closed or an open loop, and measure what users of the server would see.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    loadtest_options.add_options(parser)
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(metavar="", title="with finished results", dest="action")
    compare = actions.add_parser("compare", help="two results side by side")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    compare.set_defaults(run=run_compare)
    report = actions.add_parser("report", help="the HTML report of a result")
    report.add_argument("result", type=Path, metavar="RESULT.json")
    report.add_argument("--html", type=Path, required=True, metavar="FILE.html")
    report.set_defaults(run=run_report)


def run(args: argparse.Namespace) -> int:
    """Measure, write, judge; returns the exit code."""
    from sigmoe.loadtest.display import LiveView, show

    loadtest_options.check(args)
    view = LiveView(Console(stderr=True))
    try:
        document = asyncio.run(_measure(args, view))
    except SigmoeError as error:
        return fail(error, EXIT_FAILURE, is_json=args.json)
    finally:
        view.close()
    _write(document, args)
    if args.json:
        print(document.model_dump_json(), flush=True)
    else:
        show(document, Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    return _exit_code(document)


def run_compare(args: argparse.Namespace) -> int:
    """Print both results and what differs."""
    from sigmoe.loadtest.compare import show
    from sigmoe.loadtest.document import Document

    show(Document.read(args.before), Document.read(args.after), Console())
    return 0


def run_report(args: argparse.Namespace) -> int:
    """Write the report of a result that lies in a file."""
    from sigmoe.loadtest.document import Document
    from sigmoe.loadtest.report import render

    _put(args.html, render(Document.read(args.result)))
    return 0


async def _measure(args: argparse.Namespace, view: LiveView) -> Document:
    from sigmoe.async_client import AsyncClient
    from sigmoe.loadtest.session import Session
    from sigmoe.loadtest.tested import ClientTarget, Tested

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        """The first Ctrl-C ends the run; another one ends the process."""
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    security = security_of(args)
    # Nothing is tried again: a load test counts what a server refuses.
    async with (
        AsyncClient(args.address, timeout_s=args.timeout, retry=NO_RETRY, security=security) as client,
        AsyncClient(args.address, timeout_s=10.0, security=security) as looking,
    ):
        model, cluster = await looking.model(), await looking.cluster()
        plan = loadtest_options.plan_of(args, model)
        tested = Tested(
            address=args.address, target=ClientTarget(client), look=looking.cluster, model=model, cluster=cluster
        )
        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            return await Session(plan, tested, view, stop).run()
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def _write(document: Document, args: argparse.Namespace) -> None:
    from sigmoe.loadtest.report import render

    if args.out is not None:
        try:
            document.write(args.out)
        except OSError as error:
            raise ValueError(f"--out: {args.out}: {error.strerror}") from None
    if args.html is not None:
        _put(args.html, render(document))


def _put(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--html: {path}: {error.strerror}") from None


def _exit_code(document: Document) -> int:
    if document.is_interrupted:
        return EXIT_INTERRUPTED
    has_answers = any(level.counts.ok for level in document.levels)
    if not has_answers or any(check.is_true for check in document.checks):
        print("sigmoe: no request was answered" if not has_answers else "sigmoe: a --fail-if is true", file=sys.stderr)
        return EXIT_FAILURE
    if document.search is not None and document.search.best_rate is None:
        return EXIT_FAILURE
    return 0
