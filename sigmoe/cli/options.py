"""Options that several sub-commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sigmoe.client import DEFAULT_ADDRESS, Client
from sigmoe.sampling import Sampling
from sigmoe.security import Security

T = TypeVar("T", int, float)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """--address, --timeout, --json."""
    group = parser.add_argument_group("connection")
    group.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="gateway (default: %(default)s)")
    add_security(group)
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="deadline of each call (default: none)")
    group.add_argument("--json", action="store_true", help="print JSON, one document a line")


def connect(args: argparse.Namespace) -> Client:
    """A client for the options of `add_connection`."""
    if args.timeout is not None and args.timeout <= 0:
        raise ValueError(f"--timeout: {args.timeout} is not positive")
    return Client(args.address, timeout_s=args.timeout, security=security_of(args))


def add_security(group: argparse._ActionsContainer) -> None:
    """--tls-ca, --tls-cert, --tls-key, --token-file."""
    for name, text in (
        ("tls-ca", "PEM file of authorities: use TLS, and trust servers with a certificate of theirs"),
        ("tls-cert", "PEM file of the client's own certificate, where the server asks for one"),
        ("tls-key", "PEM file of its key"),
        ("token-file", "file with the token that the server asks for"),
    ):
        group.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)


def security_of(args: argparse.Namespace) -> Security | None:
    """What the options of `add_security` say; None: the connection is in clear."""
    if args.tls_ca is None:
        for name in ("tls_cert", "tls_key", "token_file"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: needs --tls-ca: it is of no use without TLS")
        return None
    return Security(ca=args.tls_ca, cert=args.tls_cert, key=args.tls_key, token=args.token_file)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """All sampling parameters; what is not given is the server's choice."""
    group = parser.add_argument_group("sampling", "what is not given is left to the server's defaults for its model")
    for name, kind, text in (
        ("max-tokens", int, "most tokens to generate"),
        ("min-tokens", int, "tokens before the text may end"),
        ("temperature", float, "softmax temperature; 0 always takes the most likely token"),
        ("top-k", int, "keep the k most likely tokens"),
        ("top-p", float, "keep the smallest set with this much probability"),
        ("min-p", float, "drop tokens less likely than this fraction of the most likely"),
        ("repetition-penalty", float, "penalty for tokens seen in prompt or output; 1 is none"),
        ("presence-penalty", float, "subtracted from tokens seen in the output"),
        ("frequency-penalty", float, "subtracted for each time in the output"),
        ("seed", int, "the same seed gives the same text"),
        ("n", int, "sequences to generate"),
        ("logprobs", int, "return log-probabilities and so many candidates"),
        ("max-drafts", int, "most tokens drafted at a time"),
    ):
        metavar = "N" if kind is int else "X"
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text (repeatable)")
    group.add_argument("--stop-token-id", action="append", default=[], type=int, metavar="ID", help="end at this token")
    group.add_argument("--logit-bias", action="append", default=[], type=_bias, metavar="ID=X", help="add X to a logit")
    group.add_argument(
        "--draft", metavar="METHOD", help="what drafts tokens ahead: off, eagle3, mtp or ngram; never changes the text"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The sampling parameters of `add_sampling`'s options."""
    return Sampling(
        max_tokens=args.max_tokens,
        min_tokens=args.min_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=dict(args.logit_bias) or None,
        seed=args.seed,
        n=args.n,
        stop_token_ids=args.stop_token_id,
        stop=args.stop,
        ignore_eos=args.ignore_eos or None,
        logprobs=args.logprobs,
        draft=args.draft,
        max_drafts=args.max_drafts,
    )


def _bias(text: str) -> tuple[int, float]:
    token_id, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ID=X")
    return _number(int, token_id), _number(float, value)


def _number(kind: Callable[[str], T], text: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
