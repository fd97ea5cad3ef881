"""The flags of `sigmoe loadtest`, and the plan that they make."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigmoe.cli.options import add_connection, add_sampling, sampling_of

if TYPE_CHECKING:
    from sigmoe.loadtest.lengths import Lengths
    from sigmoe.loadtest.load import Load, Schedule
    from sigmoe.loadtest.plan import Finding, Plan
    from sigmoe.loadtest.workload import Workload
    from sigmoe.results import Model

_DEFAULT_DURATION_S = 30.0
_RANDOM, _SHARED = "random", "shared-prefix"
_SYNTHETIC_INPUT, _SYNTHETIC_OUTPUT = "128", "128"
_MOST_CONCURRENCY = 100_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Everything that a run can be told."""
    load = parser.add_argument_group("load", "one of --concurrency, --rate, --trace, --find-max; the first is default")
    load.add_argument("--concurrency", metavar="N[,N...]", help="closed loop: so many requests under way (default: 1)")
    load.add_argument("--rate", metavar="R[,R...]", help="open loop: requests per second, whatever the server does")
    load.add_argument("--arrivals", choices=("poisson", "gamma", "constant"), help="of --rate (default: poisson)")
    load.add_argument("--burstiness", type=float, metavar="B", help="of gamma: variance of gaps / mean squared")
    load.add_argument("--trace", type=Path, metavar="FILE", help="replay arrivals: JSON lines with a timestamp in s")
    load.add_argument("--trace-speed", type=float, default=1.0, metavar="X", help="replay so many times as fast")
    load.add_argument("--duration", type=float, metavar="S", help="measured seconds of each load (default: 30)")
    load.add_argument("--requests", type=int, metavar="N", help="measured requests of each load, instead of a duration")
    load.add_argument("--ramp", type=float, default=0.0, metavar="S", help="grow to the load over so long, unmeasured")
    load.add_argument("--warmup", type=float, default=2.0, metavar="S", help="then so long unmeasured (default: 2)")
    load.add_argument("--drain", type=float, default=60.0, metavar="S", help="patience for the last (default: 60)")
    work = parser.add_argument_group("workload")
    work.add_argument(
        "--workload",
        default="medical",
        metavar="NAME|FILE",
        help="medical, medical-diseases, humaneval, random, shared-prefix, or a file of prompts (default: medical)",
    )
    work.add_argument("--single-turn", action="store_true", help="ask only the first turn of conversations")
    work.add_argument("--chat", action="store_true", help="ask prompts as a user's message, with the chat template")
    work.add_argument("--in-order", action="store_true", help="ask a file's prompts in its order, not shuffled")
    work.add_argument("--input-tokens", metavar="DIST", help="of random prompts (default: 128); N, uniform:16,512, ...")
    work.add_argument("--output-tokens", metavar="DIST", help="force the lengths of answers (random: default 128)")
    work.add_argument("--prefixes", type=int, default=1, metavar="N", help="of shared-prefix (default: 1)")
    work.add_argument("--prefix-tokens", type=int, default=512, metavar="N", help="of shared-prefix (default: 512)")
    goal = parser.add_argument_group("objectives", "for instance 'ttft_p99 < 500ms'; docs/loadtest.md lists the names")
    goal.add_argument("--slo", action="append", default=[], metavar="EXPR", help="of a request, for goodput: ttft < 1s")
    goal.add_argument("--fail-if", action="append", default=[], metavar="EXPR", help="exit code 1 if true of a load")
    goal.add_argument("--find-max", action="append", default=[], metavar="EXPR", help="search the highest rate for it")
    goal.add_argument("--max-rate", type=float, default=10_000.0, metavar="R", help="end of that search")
    goal.add_argument("--precision", type=float, default=0.05, metavar="X", help="of that search (default: 0.05)")
    out = parser.add_argument_group("output")
    out.add_argument("--out", type=Path, metavar="FILE.json", help="write the result")
    out.add_argument("--html", type=Path, metavar="FILE.html", help="write the report")
    out.add_argument("--label", default="", metavar="TEXT", help="a title for the result")
    out.add_argument("--sample-interval", type=float, default=1.0, metavar="S", help="of looks at the server; 0: none")
    add_sampling(parser)
    add_connection(parser)


def check(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before a server is asked. Raises ValueError naming the flag."""
    given = [flag for flag in ("concurrency", "rate", "trace") if getattr(args, flag) is not None]
    if len(given) > 1:
        raise ValueError(f"--{given[1]}: --{given[0]} is given, too; a run has one kind of load")
    if args.find_max and given and given != ["rate"]:
        raise ValueError(f"--find-max: searches rates, and --{given[0]} gives none; --rate says where to begin")
    if args.n not in (None, 1):
        raise ValueError(f"--n: {args.n} is not allowed: a load test measures one sequence for each request")
    for flag in ("burstiness", "trace_speed", "duration", "requests", "max_rate", "precision", "prefixes", "timeout"):
        _demand(args, flag, "a number above 0", lambda value: value > 0)
    for flag in ("ramp", "warmup", "drain", "sample_interval", "prefix_tokens"):
        _demand(args, flag, "a number from 0 on", lambda value: value >= 0)
    if args.arrivals is not None and args.rate is None and not args.find_max:
        raise ValueError("--arrivals: shapes --rate, which is not given")
    if args.burstiness is not None and args.arrivals != "gamma":
        raise ValueError("--burstiness: is of --arrivals gamma alone")
    if args.input_tokens is not None and args.workload not in (_RANDOM, _SHARED):
        raise ValueError(f"--input-tokens: {args.workload} has prompts of its own; --workload random takes lengths")
    _check_texts(args)
    for flag in ("out", "html"):
        path: Path | None = getattr(args, flag)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"--{flag}: {path.parent} is no folder")


def _check_texts(args: argparse.Namespace) -> None:
    """What is parsed again when the plan is made."""
    from sigmoe.loadtest.expressions import level_expression, request_expression
    from sigmoe.loadtest.lengths import Lengths

    for flag, parse in (("slo", request_expression), ("fail_if", level_expression), ("find_max", level_expression)):
        for text in getattr(args, flag):
            parse(text, f"--{flag.replace('_', '-')}")
    for flag in ("input_tokens", "output_tokens"):
        if getattr(args, flag) is not None:
            Lengths.parse(getattr(args, flag), f"--{flag.replace('_', '-')}")
    for flag, kind in (("concurrency", int), ("rate", float)):
        if getattr(args, flag) is not None:
            numbers(getattr(args, flag), f"--{flag}", kind)


def _demand(args: argparse.Namespace, name: str, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    value = getattr(args, name)
    if value is not None and not (math.isfinite(value) and is_allowed(value)):
        raise ValueError(f"--{name.replace('_', '-')}: {value} is not allowed: {allowed} is")


def plan_of(args: argparse.Namespace, model: Model) -> Plan:
    """The plan for a served model; reads the files. Raises ValueError naming flag or file and line."""
    from sigmoe.loadtest.expressions import level_expression, request_expression
    from sigmoe.loadtest.plan import Plan

    workload = _workload(args, model)
    return Plan(
        label=args.label,
        seed=args.seed or 0,
        workload=workload,
        loads=_loads(args, model, workload),
        schedule=_schedule(args),
        sampling=sampling_of(args),
        finding=_finding(args),
        slo=[request_expression(text, "--slo") for text in args.slo],
        fail_if=[level_expression(text, "--fail-if") for text in args.fail_if],
        sample_interval_s=args.sample_interval,
        arguments=_given(args),
    )


def _finding(args: argparse.Namespace) -> Finding | None:
    from sigmoe.loadtest.expressions import level_expression
    from sigmoe.loadtest.plan import Finding
    from sigmoe.loadtest.search import Range

    if not args.find_max:
        return None
    first = numbers(args.rate, "--rate", float)[0] if args.rate else 1.0
    return Finding(
        objectives=[level_expression(text, "--find-max") for text in args.find_max],
        within=Range(first=first, most=args.max_rate, precision=args.precision),
    )


def _schedule(args: argparse.Namespace) -> Schedule:
    from sigmoe.loadtest.load import Schedule

    # A trace and a number of requests end by themselves.
    has_end = args.requests is not None or args.trace is not None
    default_s = math.inf if has_end else _DEFAULT_DURATION_S
    return Schedule(
        ramp_s=args.ramp if args.trace is None else 0.0,
        warmup_s=args.warmup if args.trace is None else 0.0,
        duration_s=args.duration if args.duration is not None else default_s,
        num_requests=args.requests,
        drain_s=args.drain,
    )


def _loads(args: argparse.Namespace, model: Model, workload: Workload) -> list[Load]:
    from sigmoe.loadtest.arrivals import Arrivals, Process
    from sigmoe.loadtest.load import Closed, Open, Replay
    from sigmoe.loadtest.trace import Trace, read_trace

    if args.trace is not None:
        arrivals = read_trace(args.trace, args.trace_speed)
        vocab_size, speed = model.vocab_size, args.trace_speed
        trace = Trace(path=str(args.trace), speed=speed, arrivals=arrivals, vocab_size=vocab_size, other=workload)
        return [Replay(trace=trace)]
    if args.rate is not None or args.find_max:
        process, burstiness = Process(args.arrivals or "poisson"), args.burstiness or 1.0
        rates = numbers(args.rate or "1", "--rate", float)
        return [Open(arrivals=Arrivals(rate=rate, process=process, burstiness=burstiness)) for rate in rates]
    return [Closed(concurrency=n) for n in numbers(args.concurrency or "1", "--concurrency", int)]


def _workload(args: argparse.Namespace, model: Model) -> Workload:
    from sigmoe.loadtest import builtin
    from sigmoe.loadtest.jsonl import read_items
    from sigmoe.loadtest.lengths import Lengths
    from sigmoe.loadtest.workload import DataSet

    forced = None if args.output_tokens is None else Lengths.parse(args.output_tokens, "--output-tokens")
    if args.workload in (_RANDOM, _SHARED):
        return _random(args, model, forced or Lengths.parse(_SYNTHETIC_OUTPUT, "--output-tokens"))
    if args.workload in builtin.SETS:
        name, origin, given = args.workload, builtin.SETS[args.workload].origin, builtin.items(args.workload)
    else:
        path = Path(args.workload)
        if not path.is_file():
            known = ", ".join((*builtin.SETS, _RANDOM, _SHARED))
            raise ValueError(f"--workload: {args.workload!r} is no file and none of {known}")
        name, origin, given = path.name, str(path), read_items(path)
    changed = [item.shaped(is_chat=args.chat, is_single=args.single_turn) for item in given]
    return DataSet(name=name, origin=origin, given=changed, output_tokens=forced, is_shuffled=not args.in_order)


def _random(args: argparse.Namespace, model: Model, output_tokens: Lengths) -> Workload:
    from sigmoe.loadtest.lengths import Lengths
    from sigmoe.loadtest.workload import RandomTokens

    if model.vocab_size <= len(model.eos_token_ids):
        raise ValueError(f"--workload: {args.workload} needs a vocabulary, and the server tells of none")
    return RandomTokens(
        vocab_size=model.vocab_size,
        input_tokens=Lengths.parse(args.input_tokens or _SYNTHETIC_INPUT, "--input-tokens"),
        output_tokens=output_tokens,
        num_prefixes=args.prefixes if args.workload == _SHARED else 0,
        prefix_tokens=args.prefix_tokens,
        avoided=frozenset(model.eos_token_ids),
    )


def numbers(text: str, flag: str, kind: type[int] | type[float]) -> list[Any]:
    """`1,2,4` of one kind, all above 0. Raises ValueError naming the flag."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{flag}: {text!r} are no {wanted} separated by commas") from None
    if not all(math.isfinite(number) and 0 < number <= _MOST_CONCURRENCY for number in found):
        raise ValueError(f"{flag}: {text!r}: numbers above 0 and up to {_MOST_CONCURRENCY} are allowed")
    return found


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, for whoever wants to repeat the run."""
    left_out = ("run", "action", "json")
    shown = {
        name: value for name, value in vars(args).items() if name not in left_out and value not in (None, [], False)
    }
    return {name: str(value) if isinstance(value, Path) else value for name, value in sorted(shown.items())}
