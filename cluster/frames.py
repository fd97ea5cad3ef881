"""What travels between gateway and ranks, as msgpack: requests one way, token deltas and statuses the other.

A frame is `[version, kind, body]`. Records travel as arrays in the order of their fields; the delta of a plain
decode, by far the most frequent, as three elements, that of a round as four. Nothing is trusted: whatever is not
exactly a frame of this version raises FrameError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import msgpack

from cluster.executor import RankStatus
from scheduler.request import (
    DraftCounts,
    DraftingState,
    DraftingStatus,
    DraftMethod,
    FinishReason,
    Request,
    Round,
    SamplingParams,
    SchedulerStats,
    TokenDelta,
    TokenLogprob,
    Usage,
)

VERSION = 4
_REQUEST, _DELTAS, _STATUS = 1, 2, 3

_REASONS = tuple(FinishReason)
_REASON_NUMBERS = {reason: number for number, reason in enumerate(_REASONS)}
_METHODS = tuple(DraftMethod)
_STATES = tuple(DraftingState)
_MOST_DRAFTS = 64  # in a round

Value = TypeVar("Value")
Record = TypeVar("Record")


class FrameError(ValueError):
    """Bytes that are no frame of this version, or a value that does not fit into one."""


def encode_request(request: Request) -> bytes:
    """One request. Raises FrameError where a number does not fit 64 bits."""
    return _pack(_REQUEST, _REQUEST_CODEC.encode(request))


def decode_request(frame: bytes) -> Request:
    """The inverse of encode_request. Raises FrameError."""
    return _unpack(frame, _REQUEST, _REQUEST_CODEC.decode)


def encode_deltas(deltas: Sequence[TokenDelta]) -> bytes:
    """What one or more steps added, in order."""
    return _pack(_DELTAS, [_delta_body(delta) for delta in deltas])


def decode_deltas(frame: bytes) -> tuple[TokenDelta, ...]:
    """The inverse of encode_deltas. Raises FrameError."""
    return _unpack(frame, _DELTAS, _delta_list)


def encode_status(status: RankStatus) -> bytes:
    """The status of one rank."""
    return _pack(_STATUS, _STATUS_CODEC.encode(status))


def decode_status(frame: bytes) -> RankStatus:
    """The inverse of encode_status. Raises FrameError."""
    return _unpack(frame, _STATUS, _STATUS_CODEC.decode)


def _pack(kind: int, body: object) -> bytes:
    try:
        return bytes(msgpack.packb((VERSION, kind, body)))
    except (OverflowError, TypeError, ValueError) as error:
        raise FrameError(f"value does not fit a frame: {error}") from error


def _unpack(frame: bytes, kind: int, decode: Callable[[Any], Value]) -> Value:
    try:
        content = msgpack.unpackb(frame, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise FrameError(f"not a frame: {error or type(error).__name__}") from error
    if type(content) is not tuple or len(content) != 3:
        raise FrameError("not a frame: expected [version, kind, body]")
    version, found, body = content
    if type(version) is not int or version != VERSION:
        raise FrameError(f"frame of version {version!r}, this side speaks {VERSION}")
    if type(found) is not int or found != kind:
        raise FrameError(f"frame of kind {found!r}, expected {kind}")
    return decode(body)


# ---- single values: each checks what it was given and returns it ----


def _wrong(expected: str, value: object) -> NoReturn:
    raise FrameError(f"expected {expected}, got {type(value).__name__}")


def _int(value: object) -> int:
    return value if type(value) is int else _wrong("an integer", value)


def _float(value: object) -> float:
    if type(value) is float:
        return value
    return float(value) if type(value) is int else _wrong("a number", value)


def _bool(value: object) -> bool:
    return value if type(value) is bool else _wrong("a boolean", value)


def _str(value: object) -> str:
    return value if type(value) is str else _wrong("a string", value)


def _ints(value: object) -> tuple[int, ...]:
    if type(value) is not tuple:
        _wrong("an array of integers", value)
    if not all(type(entry) is int for entry in value):
        raise FrameError("expected an array of integers")
    return value


def _pairs(value: object) -> tuple[tuple[int, float], ...]:
    if type(value) is not tuple:
        _wrong("an array of pairs", value)
    return tuple([_pair(entry) for entry in value])


def _pair(value: object) -> tuple[int, float]:
    if type(value) is not tuple or len(value) != 2:
        _wrong("a pair", value)
    return _int(value[0]), _float(value[1])


def _optional(check: Callable[[Any], Value]) -> Callable[[Any], Value | None]:
    return lambda value: None if value is None else check(value)


# ---- records ----


class _Codec(Generic[Record]):
    """A dataclass as an array of its fields, in the order of `checks`."""

    def __init__(self, record: type[Record], checks: dict[str, Callable[[Any], Any]]) -> None:
        self._record, self._checks = record, checks

    def encode(self, value: Record) -> list[Any]:
        return [_plain(getattr(value, name)) for name in self._checks]

    def decode(self, body: object) -> Record:
        if type(body) is not tuple or len(body) != len(self._checks):
            raise FrameError(f"{self._record.__name__}: expected an array of {len(self._checks)}")
        values = {}
        for (name, check), entry in zip(self._checks.items(), body, strict=True):
            try:
                values[name] = check(entry)
            except FrameError as error:
                raise FrameError(f"{self._record.__name__}.{name}: {error}") from error
        return self._record(**values)


def _plain(value: object) -> object:
    if isinstance(value, SamplingParams):
        return _SAMPLING_CODEC.encode(value)
    if isinstance(value, tuple) and value and isinstance(value[0], DraftingStatus):
        return [_DRAFTING_CODEC.encode(entry) for entry in value]
    if isinstance(value, SchedulerStats):
        return _STATS_CODEC.encode(value)
    if isinstance(value, DraftCounts):
        return _DRAFTS_CODEC.encode(value)
    if isinstance(value, DraftingState):
        return _STATES.index(value)
    return _METHODS.index(value) if isinstance(value, DraftMethod) else value


def _method(value: object) -> DraftMethod:
    if type(value) is not int or not 0 <= value < len(_METHODS):
        raise FrameError(f"unknown draft method {value!r}")
    return _METHODS[value]


def _state(value: object) -> DraftingState:
    if type(value) is not int or not 0 <= value < len(_STATES):
        raise FrameError(f"unknown state of drafting {value!r}")
    return _STATES[value]


_DRAFTS_CODEC = _Codec(DraftCounts, {"num_rounds": _int, "num_committed": _int, "drafted": _ints, "accepted": _ints})
_DRAFTING_CODEC = _Codec(
    DraftingStatus,
    {
        "method": _method,
        "state": _state,
        "length": _int,
        "reason": _str,
        "counts": _DRAFTS_CODEC.decode,
        "cost_error": _float,
    },
)


def _drafting(value: object) -> tuple[DraftingStatus, ...]:
    if type(value) is not tuple:
        _wrong("an array of draft methods", value)
    return tuple([_DRAFTING_CODEC.decode(entry) for entry in value])


_SAMPLING_CODEC = _Codec(
    SamplingParams,
    {
        "max_tokens": _int,
        "min_tokens": _int,
        "temperature": _float,
        "top_k": _int,
        "top_p": _float,
        "min_p": _float,
        "repetition_penalty": _float,
        "presence_penalty": _float,
        "frequency_penalty": _float,
        "logit_bias": _pairs,
        "seed": _int,
        "stop_token_ids": _ints,
        "ignore_eos": _bool,
        "num_logprobs": _optional(_int),
        "num_prompt_logprobs": _optional(_int),
    },
)
_REQUEST_CODEC = _Codec(
    Request,
    {
        "request_id": _str,
        "prompt": _ints,
        "sampling": _SAMPLING_CODEC.decode,
        "num_sequences": _int,
        "priority": _int,
        "deadline_s": _optional(_float),
        "resumed": _ints,
        "first_sequence_index": _int,
        "draft_method": _optional(_method),
        "max_drafts": _optional(_int),
    },
)
_STATS_CODEC = _Codec(
    SchedulerStats,
    {
        "num_waiting": _int,
        "num_running": _int,
        "num_blocks": _int,
        "num_free_blocks": _int,
        "num_cached_blocks": _int,
        "block_size": _int,
        "num_preemptions": _int,
        "prefix_hit_tokens": _int,
        "prefix_query_tokens": _int,
        "drafting": _drafting,
        "forward_s": _float,
        "sample_s": _float,
        "draft_s": _float,
        "extend_s": _float,
    },
)
_STATUS_CODEC = _Codec(
    RankStatus,
    {
        "rank": _int,
        "device": _str,
        "host": _str,
        "pid": _int,
        "is_alive": _bool,
        "experts": _ints,
        "stats": _optional(_STATS_CODEC.decode),
        "num_steps": _int,
        "num_tokens": _int,
        "weight_bytes": _int,
        "kv_bytes": _int,
        "expert_tokens": _ints,
        "kernels": _str,
        "replica": _int,
    },
)
_USAGE_CODEC = _Codec(
    Usage,
    {
        "num_prompt_tokens": _int,
        "num_cached_tokens": _int,
        "num_output_tokens": _int,
        "num_preemptions": _int,
        "queue_s": _float,
        "prefill_s": _float,
        "decode_s": _float,
        "forward_s": _float,
        "sample_s": _float,
        "draft_s": _float,
        "extend_s": _float,
        "draft_method": _method,
        "draft_reason": _str,
    },
)


# ---- deltas: written out, because each token passes here ----


def _delta_body(delta: TokenDelta) -> tuple[object, ...]:
    head = (delta.request_id, delta.sequence_index, delta.token_ids)
    reason = delta.finish_reason
    if reason is None and not (delta.logprobs or delta.prompt_logprobs or delta.error or delta.usage):
        return (*head, delta.rounds) if delta.rounds else head
    return (
        *head,
        delta.rounds,
        [(entry.token_id, entry.logprob, entry.top) for entry in delta.logprobs],
        [(entry.token_id, entry.logprob, entry.top) for entry in delta.prompt_logprobs],
        None if reason is None else _REASON_NUMBERS[reason],
        delta.error,
        None if delta.usage is None else _USAGE_CODEC.encode(delta.usage),
    )


def _delta_list(body: object) -> tuple[TokenDelta, ...]:
    if type(body) is not tuple:
        _wrong("an array of deltas", body)
    return tuple([_delta(entry) for entry in body])


def _delta(body: object) -> TokenDelta:
    if type(body) is not tuple or len(body) not in (3, 4, 9):
        raise FrameError("TokenDelta: expected an array of 3, 4 or 9")
    request_id, index, token_ids = _str(body[0]), _int(body[1]), _ints(body[2])
    if len(body) == 3:
        return TokenDelta(request_id=request_id, sequence_index=index, token_ids=token_ids)
    rounds = _rounds(body[3])
    if len(body) == 4:
        return TokenDelta(request_id=request_id, sequence_index=index, token_ids=token_ids, rounds=rounds)
    return TokenDelta(
        request_id=request_id,
        sequence_index=index,
        token_ids=token_ids,
        rounds=rounds,
        logprobs=_logprobs(body[4]),
        prompt_logprobs=_logprobs(body[5]),
        finish_reason=_reason(body[6]),
        error=_str(body[7]),
        usage=None if body[8] is None else _USAGE_CODEC.decode(body[8]),
    )


def _rounds(body: object) -> tuple[Round, ...]:
    if type(body) is not tuple:
        _wrong("an array of rounds", body)
    return tuple([_round(entry) for entry in body])


def _round(body: object) -> Round:
    if type(body) is not tuple or len(body) != 3:
        raise FrameError("Round: expected an array of 3")
    num_drafted, num_accepted, num_committed = body
    if not type(num_drafted) is type(num_accepted) is type(num_committed) is int:
        raise FrameError("Round: expected an array of integers")
    if not 0 <= num_accepted <= num_drafted <= _MOST_DRAFTS or num_committed < 0:
        raise FrameError(f"Round: {body} is none")
    return Round(num_drafted, num_accepted, num_committed)


def _logprobs(body: object) -> tuple[TokenLogprob, ...]:
    if type(body) is not tuple:
        _wrong("an array of log-probabilities", body)
    return tuple([_logprob(entry) for entry in body])


def _logprob(body: object) -> TokenLogprob:
    if type(body) is not tuple or len(body) != 3:
        raise FrameError("TokenLogprob: expected an array of 3")
    return TokenLogprob(token_id=_int(body[0]), logprob=_float(body[1]), top=_pairs(body[2]))


def _reason(body: object) -> FinishReason | None:
    if body is None:
        return None
    if type(body) is not int or not 0 <= body < len(_REASONS):
        raise FrameError(f"unknown finish reason {body!r}")
    return _REASONS[body]
