"""Lines of a batch in OpenAI's format: what each asks for, or what is wrong with it.

A line is {"custom_id", "method": "POST", "url": "/v1/chat/completions" or "/v1/completions", "body": {...}}; shorter,
a body alone, {"messages": [...]} or {"prompt": ...}, with or without a custom_id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from sigmoe.messages import Prompt
from sigmoe.sampling import Sampling

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_ID = 512  # characters of a custom_id

_LINE = ("custom_id", "method", "url", "body")
_BODY = ("model", "user", "metadata", "store", "service_tier")  # besides the prompt and the table below

# Fields for which one value alone is implemented: it means what we do anyway.
_ONLY: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class LineFault(ValueError):
    """Something is wrong with one line; `field` is its path in the line, empty where the line as a whole is."""

    def __init__(self, code: str, field: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.code = code
        self.field = field
        self.custom_id = custom_id


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """What a line asks for. `prompt` is a text or token ids, or `messages` hold a conversation."""

    custom_id: str
    model: str | None
    prompt: Prompt | None
    messages: tuple[dict[str, str], ...]
    sampling: Sampling

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation."""
        return self.prompt is None


def parse_line(raw: bytes, number: int) -> BatchRequest:
    """The request of a line; `number` names one that has no custom_id and need not. Raises LineFault."""
    line = _object(raw)
    custom_id = line.get("custom_id")
    try:
        return _request(line, number)
    except LineFault as fault:
        fault.custom_id = custom_id if isinstance(custom_id, str) and custom_id else None
        raise


def _request(line: dict[str, Any], number: int) -> BatchRequest:
    is_short = "body" not in line and "url" not in line and ("messages" in line or "prompt" in line)
    custom_id = _custom_id(line, default=f"line-{number}" if is_short else None)
    if is_short:
        body = {key: value for key, value in line.items() if key != "custom_id"}
        prefix, is_chat = "", "messages" in line
    else:
        body, prefix, is_chat = _body(line), "body.", line["url"] == CHAT
    return _Body(body, prefix, is_chat=is_chat).request(custom_id)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise LineFault("invalid_json", "", f"the line is not UTF-8 ({error.reason})") from None
    except RecursionError:
        raise LineFault("invalid_json", "", "the line is nested too deeply") from None
    except ValueError as error:
        raise LineFault("invalid_json", "", f"the line is no JSON: {error}") from None
    if not isinstance(line, dict):
        raise LineFault("invalid_json", "", f"the line is a JSON {_kind(line)}: an object is needed")
    return line


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _custom_id(line: Mapping[str, Any], default: str | None) -> str:
    given = line.get("custom_id", default)
    if given is None:
        _refuse("custom_id", "missing: every line needs one of its own")
    if not isinstance(given, str) or not 0 < len(given) <= MAX_ID:
        _refuse("custom_id", f"{_short(given)} is not allowed: a text of 1 to {MAX_ID} characters is")
    return given


def _body(line: Mapping[str, Any]) -> dict[str, Any]:
    for name in line:
        if name not in _LINE:
            _refuse(name, f"unknown; a line has {', '.join(_LINE)}")
    if line.get("method", "POST") != "POST":
        _refuse("method", f"{_short(line['method'])} is not allowed: POST is")
    if line.get("url") not in (CHAT, COMPLETIONS):
        _refuse("url", f"{_short(line.get('url'))} is not served: {CHAT} and {COMPLETIONS} are")
    body = line.get("body")
    if not isinstance(body, dict):
        _refuse("body", f"{_kind(body)} is not allowed: an object is")
    return body


class _Body:
    """Reads the fields of one body; what stays unread is unknown. A null counts as absent."""

    def __init__(self, body: Mapping[str, Any], prefix: str, *, is_chat: bool) -> None:
        self._body = {name: value for name, value in body.items() if value is not None}
        self._prefix = prefix
        self._is_chat = is_chat

    def request(self, custom_id: str) -> BatchRequest:
        """The whole of it."""
        self._check_names()
        model = self._text("model")
        prompt = None if self._is_chat else self._prompt()
        messages = self._messages() if self._is_chat else ()
        return BatchRequest(
            custom_id=custom_id, model=model, prompt=prompt, messages=messages, sampling=self._sampling()
        )

    def _check_names(self) -> None:
        known = {*_BODY, *_ONLY, *_WHOLE, *_REAL, "stop", "logit_bias", "logprobs", "ignore_eos", "stop_token_ids"}
        known |= {"messages", "top_logprobs", "max_completion_tokens"} if self._is_chat else {"prompt"}
        for name, value in self._body.items():
            if name not in known:
                self._fail(name, f"not supported for {CHAT if self._is_chat else COMPLETIONS}")
            if name in _ONLY and value not in _ONLY[name]:
                only = " or ".join(map(json.dumps, _ONLY[name])) or "leaving it out"
                self._fail(name, f"{_short(value)} is not supported: {only} is")

    def _prompt(self) -> Prompt:
        given = self._body.get("prompt")
        if isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_whole, given))):
            return given
        self._fail("prompt", "missing" if given is None else "not allowed: one text or one list of token ids is")

    def _messages(self) -> tuple[dict[str, str], ...]:
        given = self._body.get("messages")
        if not isinstance(given, list) or not given:
            self._fail("messages", "missing" if given is None else "not allowed: a list of messages is")
        return tuple(self._message(message, f"messages[{index}]") for index, message in enumerate(given))

    def _message(self, message: Any, where: str) -> dict[str, str]:
        if not isinstance(message, dict):
            self._fail(where, f"{_kind(message)} is not allowed: an object is")
        for name, value in message.items():
            if name not in ("role", "content") and value is not None:
                self._fail(f"{where}.{name}", "not supported: a message has role and content")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            self._fail(f"{where}.role", "missing" if role is None else f"{_kind(role)} is not allowed: a text is")
        if isinstance(content, list):
            content = "".join(self._part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
        if not isinstance(content, str):
            self._fail(f"{where}.content", "missing" if content is None else f"{_kind(content)} is not allowed")
        return {"role": "system" if role == "developer" else role, "content": content}

    def _part(self, part: Any, where: str) -> str:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            self._fail(where, 'only {"type": "text", "text": ...} is supported')
        text: str = part["text"]
        return text

    def _sampling(self) -> Sampling:
        fields: dict[str, Any] = {name: self._value(name, _is_whole, "a whole number") for name in _WHOLE}
        fields |= {name: self._value(name, _is_real, "a number") for name in _REAL}
        if self._is_chat:
            fields["max_tokens"] = self._max_tokens(fields["max_tokens"])
        return Sampling(
            **fields,
            stop=self._stop(),
            stop_token_ids=self._value("stop_token_ids", _are_whole, "a list of token ids") or (),
            ignore_eos=self._value("ignore_eos", _is_flag, "true or false"),
            logit_bias=self._logit_bias(),
            logprobs=self._logprobs(),
        )

    def _max_tokens(self, given: int | None) -> int | None:
        newer: int | None = self._value("max_completion_tokens", _is_whole, "a whole number")
        if newer is not None and given is not None and newer != given:
            self._fail("max_completion_tokens", f"{newer} contradicts max_tokens {given}")
        return given if newer is None else newer

    def _stop(self) -> list[str]:
        given = self._body.get("stop", [])
        stops = [given] if isinstance(given, str) else given
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            self._fail("stop", f"{_short(given)} is not allowed: a text or a list of texts is")
        return stops

    def _logit_bias(self) -> dict[int, float] | None:
        given = self._body.get("logit_bias")
        if given is None:
            return None
        if not isinstance(given, dict) or not all(map(_is_real, given.values())):
            self._fail("logit_bias", "an object of token ids and numbers is allowed")
        for token_id in given:
            if not (token_id.isascii() and token_id.isdigit() and int(token_id) < 2**31):
                self._fail(f"logit_bias.{token_id}"[:80], "no token id")
        return {int(token_id): bias for token_id, bias in given.items()}

    def _logprobs(self) -> int | None:
        """Candidates at each place: completions give the number, chats a flag and the number beside it."""
        if not self._is_chat:
            number: int | None = self._value("logprobs", _is_whole, "a whole number")
            return number
        is_wanted = self._value("logprobs", _is_flag, "true or false")
        top: int | None = self._value("top_logprobs", _is_whole, "a whole number")
        if top is not None and not is_wanted:
            self._fail("top_logprobs", "needs logprobs: true")
        return (top or 0) if is_wanted else None

    def _text(self, name: str) -> str | None:
        value: str | None = self._value(name, lambda value: isinstance(value, str), "a text")
        return value

    def _value(self, name: str, is_right: Callable[[Any], bool], right: str) -> Any:
        value = self._body.get(name)
        if value is not None and not is_right(value):
            self._fail(name, f"{_short(value)} is not allowed: {right} is")
        return value

    def _fail(self, name: str, message: str) -> NoReturn:
        _refuse(f"{self._prefix}{name}", message)


_WHOLE = ("max_tokens", "min_tokens", "top_k", "n", "seed")
_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def _refuse(field: str, message: str) -> NoReturn:
    raise LineFault("invalid_request", field, message)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "flag", int: "number", float: "number"}
    return names.get(type(value), "null")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
