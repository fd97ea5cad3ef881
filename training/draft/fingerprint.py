"""Which model answered: enough of its files to tell it from one that was trained anew, without reading them whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

_ENDS = 1 << 20  # bytes from either end of a weight file


def fingerprint(model: Path) -> str:
    """SHA-256 over names, sizes and ends of the files of a checkpoint's configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for file in sorted([*model.glob("*.json"), *model.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_ENDS))
            opened.seek(max(size - _ENDS, 0))
            digest.update(opened.read(_ENDS))
    return digest.hexdigest()
