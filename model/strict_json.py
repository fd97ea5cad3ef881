"""JSON objects from checkpoint files: no key twice, and every fault told with the file it is in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.errors import CheckpointError


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError that names the file."""
    try:
        return parse_object(file.read_bytes(), file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; a checkpoint folder in Hugging Face layout is needed") from None
    except OSError as error:
        raise CheckpointError(f"{file}: not readable: {error.strerror}") from None


def parse_object(text: bytes, file: Path) -> dict[str, Any]:
    """A JSON object from UTF-8 text; `file` is what errors name."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in seen:
                raise CheckpointError(f"{file}: {name} is given twice")
            seen[name] = value
        return seen

    try:
        fields = json.loads(text, object_pairs_hook=once)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: holds a JSON {type(fields).__name__}, not an object")
    return fields
