"""Prompts from files: JSON lines with `prompt`, `messages` or `turns`, and ShareGPT's conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sigmoe.loadtest.workload import Item, Message

KEYS = ("prompt", "messages", "turns", "conversations")
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
    "tool": "tool",
}


def read_items(path: Path) -> list[Item]:
    """All items of a file, a JSON array (ShareGPT's usual form) or JSON lines.

    Raises ValueError naming file and line, or the entry of an array. ShareGPT's entries without a user's turn, which
    its dumps hold, are left out.
    """
    items = [item for where, entry in entries(path) if (item := item_of(entry, where)) is not None]
    if not items:
        raise ValueError(f"{path}: holds no prompts")
    return items


def entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, object) of every entry."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 at byte {error.start}") from None
    if text.lstrip().startswith("["):
        for index, entry in enumerate(_parsed(text, str(path))):
            yield f"{path}, entry {index}", _object(entry, f"{path}, entry {index}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(_parsed(line, where), where)


def item_of(entry: dict[str, Any], where: str) -> Item | None:
    """The item of one object; None for a ShareGPT conversation that asks nothing."""
    found = [key for key in KEYS if key in entry]
    if len(found) != 1:
        raise ValueError(f"{where}: expected one of the keys {', '.join(KEYS)}, found {', '.join(found) or 'none'}")
    key = found[0]
    value = entry[key]
    if key == "prompt":
        return Item(prompt=_prompt(value, where))
    if not isinstance(value, list) or (not value and key != "conversations"):
        raise ValueError(f"{where}: {key}: expected a list that is not empty")
    if key == "turns":
        return Item(rounds=tuple(({"role": "user", "content": _text(t, f"{where}: turns")},) for t in value))
    if key == "messages":
        return Item(rounds=(tuple(_message(m, f"{where}: messages[{i}]") for i, m in enumerate(value)),))
    return _sharegpt(value, where)


def _prompt(value: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(value, list) and value and all(type(token) is int and 0 <= token < 2**31 for token in value):
        return tuple(value)
    if isinstance(value, list):
        raise ValueError(f"{where}: prompt: expected token ids from 0 on, or a text")
    return _text(value, f"{where}: prompt")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: expected a text that is not empty, got {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: the text holds half a surrogate pair and is no Unicode") from None
    return value


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= set(value):
        raise ValueError(f'{where}: expected {{"role": ..., "content": ...}}, got {_short(value)}')
    if value["role"] not in ROLES:
        raise ValueError(f"{where}: role: {_short(value['role'])} is not one of {', '.join(ROLES)}")
    return {"role": value["role"], "content": _text(value["content"], f"{where}: content")}


def _sharegpt(value: list[Any], where: str) -> Item | None:
    """The user's turns are asked one after the other; answers are the served model's, recorded ones are left out."""
    rounds: list[tuple[Message, ...]] = []
    opening: list[Message] = []
    for index, part in enumerate(value):
        place = f"{where}: conversations[{index}]"
        if not isinstance(part, dict) or not {"from", "value"} <= set(part):
            raise ValueError(f'{place}: expected {{"from": ..., "value": ...}}, got {_short(part)}')
        role = _SHAREGPT_ROLES.get(part["from"]) if isinstance(part["from"], str) else None
        if role is None:
            raise ValueError(f"{place}: from: {_short(part['from'])} is not one of {', '.join(_SHAREGPT_ROLES)}")
        if role == "assistant" or not part["value"]:
            continue
        opening.append({"role": role, "content": _text(part["value"], place)})
        if role == "user":
            rounds.append(tuple(opening))
            opening = []
    return Item(rounds=tuple(rounds)) if rounds else None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        detail = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        )
        raise ValueError(f"{where}: is no JSON: {detail}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
