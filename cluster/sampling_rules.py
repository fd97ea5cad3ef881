"""The ranges of the sampling parameters (types.proto), checked all at once, and their defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.served_model import GenerationDefaults
from scheduler.request import DraftMethod, SamplingParams
from sigmoe.errors import InvalidRequest, Violation
from sigmoe.v1 import types_pb2

DEFAULT_MAX_TOKENS = 1024
_MAX_STOPS, _MAX_STOP_LENGTH = 16, 256
_MAX_IDS = 1024  # entries of logit_bias, or of stop_token_ids
_INT32_MAX = 2**31 - 1
_MAX_TOLD = 16  # violations


class Violations:
    """Collects what is wrong with a request, to be told all at once."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def add(self, field: str, message: str) -> None:
        """Note a fault of a field, given by its path in the proto. What is beyond telling is dropped."""
        if len(self._found) < _MAX_TOLD:
            self._found.append(Violation(field, message))

    def demand(self, is_met: bool, field: str, message: str) -> None:
        """Note a fault unless the condition holds."""
        if not is_met:
            self.add(field, message)

    def raise_if_any(self) -> None:
        """Raises InvalidRequest with all that was noted."""
        if self._found:
            raise InvalidRequest("invalid request", self._found)


@dataclass(frozen=True, slots=True)
class _Range:
    field: str
    least: float
    most: float
    is_open: bool = False  # the lower end itself is not allowed

    def __str__(self) -> str:
        if self.most >= _INT32_MAX:
            return f"at least {self.least:g} is"
        return f"{'above ' if self.is_open else ''}{self.least:g} to {self.most:g} is"

    def allows(self, value: float) -> bool:
        """Whether a value is inside; NaN and infinity never are."""
        is_above = value > self.least if self.is_open else value >= self.least
        return is_above and value <= self.most


_RANGES = (
    _Range("max_tokens", 1, _INT32_MAX),
    _Range("min_tokens", 0, _INT32_MAX),
    _Range("temperature", 0, 100),
    _Range("top_k", 0, _INT32_MAX),
    _Range("top_p", 0, 1, is_open=True),
    _Range("min_p", 0, 1),
    _Range("repetition_penalty", 0, 100, is_open=True),
    _Range("presence_penalty", -100, 100),
    _Range("frequency_penalty", -100, 100),
    _Range("n", 1, 64),
    _Range("logprobs", 0, 20),
    _Range("prompt_logprobs", 0, 20),
    _Range("max_drafts", 0, 64),
)
_BIAS = _Range("logit_bias", -1000, 1000)


def check_sampling(given: types_pb2.SamplingParams, vocab_size: int, violations: Violations) -> None:
    """Note everything in `given` that is out of range."""
    for allowed in _RANGES:
        if given.HasField(allowed.field):
            value = getattr(given, allowed.field)
            violations.demand(
                allowed.allows(value), f"sampling.{allowed.field}", f"{value:g} is not allowed: {allowed}"
            )
    if given.HasField("max_tokens") and given.min_tokens > given.max_tokens:
        violations.add("sampling.min_tokens", f"{given.min_tokens} is more than max_tokens {given.max_tokens}")
    _check_stops(list(given.stop), violations)
    check_ids(given.stop_token_ids, vocab_size, "sampling.stop_token_ids", violations)
    check_ids(given.logit_bias, vocab_size, "sampling.logit_bias", violations)
    for field, entries in (("stop_token_ids", given.stop_token_ids), ("logit_bias", given.logit_bias)):
        violations.demand(
            len(entries) <= _MAX_IDS, f"sampling.{field}", f"{len(entries)} entries: at most {_MAX_IDS} are allowed"
        )
    for token_id, bias in given.logit_bias.items():
        if not _BIAS.allows(bias):
            violations.add(f"sampling.logit_bias[{token_id}]", f"{bias:g} is not allowed: {_BIAS}")
            break


def check_ids(token_ids: Any, vocab_size: int, field: str, violations: Violations) -> None:
    """Note the first id that is outside the vocabulary."""
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            violations.add(f"{field}[{position}]", f"token id {token_id} is not allowed: 0 to {vocab_size - 1} is")
            return


def sampling_params(
    given: types_pb2.SamplingParams, defaults: GenerationDefaults, room: int, draw_seed: Callable[[], int]
) -> SamplingParams:
    """The parameters of a checked message; `room` is what the prompt leaves of the context, at least 1.

    What was asked for beyond the room ends there with LENGTH.
    """

    def value(field: str, default: Any) -> Any:
        return getattr(given, field) if given.HasField(field) else default

    max_tokens = min(value("max_tokens", max(DEFAULT_MAX_TOKENS, given.min_tokens)), room)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(given.min_tokens, max_tokens),
        temperature=value("temperature", defaults.temperature),
        top_k=value("top_k", defaults.top_k),
        top_p=value("top_p", defaults.top_p),
        min_p=value("min_p", defaults.min_p),
        repetition_penalty=value("repetition_penalty", defaults.repetition_penalty),
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logit_bias=tuple(sorted(given.logit_bias.items())),
        seed=value("seed", None) if given.HasField("seed") else draw_seed(),
        stop_token_ids=tuple(given.stop_token_ids),
        ignore_eos=given.ignore_eos,
        num_logprobs=value("logprobs", None),
        num_prompt_logprobs=value("prompt_logprobs", None),
    )


_METHODS = {
    types_pb2.DRAFT_METHOD_OFF: DraftMethod.NONE,
    types_pb2.DRAFT_METHOD_EAGLE3: DraftMethod.EAGLE3,
    types_pb2.DRAFT_METHOD_MTP: DraftMethod.MTP,
    types_pb2.DRAFT_METHOD_NGRAM: DraftMethod.NGRAM,
}


DRAFT_MODELS = {method: value for value, method in _METHODS.items()}  # as the wire has them


def draft_method(given: types_pb2.SamplingParams, loaded: DraftMethod, violations: Violations) -> DraftMethod | None:
    """What is to draft for a request; None leaves it to the server. Notes one that is not `loaded` or not known."""
    if given.draft == types_pb2.DRAFT_METHOD_UNSPECIFIED:
        return None
    method = _METHODS.get(given.draft)
    if method is None:
        violations.add("sampling.draft", f"{given.draft} is not allowed: a value of DraftMethod is")
    elif method.has_kv and method is not loaded:
        instead = f"{loaded.value}, " if loaded.has_kv else ""
        violations.add("sampling.draft", f"{method.value} is not loaded here: {instead}ngram and off are allowed")
    return method


def _check_stops(stops: list[str], violations: Violations) -> None:
    field = "sampling.stop"
    violations.demand(len(stops) <= _MAX_STOPS, field, f"{len(stops)} strings: at most {_MAX_STOPS} are allowed")
    for position, stop in enumerate(stops[: _MAX_STOPS + 1]):
        if not 1 <= len(stop) <= _MAX_STOP_LENGTH:
            violations.add(f"{field}[{position}]", f"{len(stop)} characters: 1 to {_MAX_STOP_LENGTH} are allowed")
