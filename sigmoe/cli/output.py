"""How commands speak: text for people, JSON for programs, exit codes for scripts."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import datetime
from typing import Any

from sigmoe import errors
from sigmoe.results import Drafts, Usage

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.InvalidRequest, EXIT_USAGE),
    (errors.Unavailable, 3),
    (errors.Overloaded, 4),
    (errors.DeadlineExceeded, 5),
    (errors.Cancelled, EXIT_INTERRUPTED),
    (errors.SigmoeError, EXIT_FAILURE),
    (ValueError, EXIT_USAGE),
)


def exit_code_of(error: Exception) -> int:
    """The exit code for an error; they are listed in `sigmoe --help`."""
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def fail(error: Exception, code: int, *, is_json: bool) -> int:
    """Tell the error on stderr and return the exit code."""
    if is_json:
        detail = {"kind": type(error).__name__, "message": str(error)}
        if isinstance(error, errors.InvalidRequest):
            detail["violations"] = [dataclasses.asdict(entry) for entry in error.violations]  # type: ignore[assignment]
        print(json.dumps({"error": detail}), file=sys.stderr)
    else:
        print(f"sigmoe: {error}", file=sys.stderr)
        if isinstance(error, errors.Unavailable):
            print("sigmoe: is the server running? `sigmoe serve` starts one; --address names it", file=sys.stderr)
    return code


def print_json(value: Any) -> None:
    """One JSON document on one line; results are dataclasses."""
    print(json.dumps(_plain(value), ensure_ascii=False), flush=True)


def closing_line(usage: Usage, elapsed_s: float, reason: str | None) -> str:
    """What an answer took, for people."""
    tau = None if usage.drafts is None else usage.drafts.tau
    drafted = "" if tau is None else f", {tau:.2f} tokens a step with drafts"
    rate = usage.output_tokens / max(elapsed_s, 1e-9)
    return f"{usage.output_tokens} tokens, {rate:.0f} tokens/s, {reason}{drafted}"


def _plain(value: Any) -> Any:
    """Dataclasses as objects; what is a ratio of their fields, and asked for by all, beside them."""
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return fields | ({"tau": value.tau} if isinstance(value, Drafts) else {})
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
