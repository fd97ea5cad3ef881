"""Text to token ids and back, by the checkpoint's tokenizer.json (byte-level BPE)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from model.errors import CheckpointError

_LONG_TEXT = 4096  # characters or tokens; measured: encoding runs at about a million/s, so the loop stalls for 4 ms


class Tokenizer:
    """Encodes whole texts, and knows the bytes of each token, so that decoding needs no library.

    `pieces[i]` are the bytes of token i, `shown[i]` those that readers see: none for special tokens.
    Ids without a token have no entry.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.pieces = {
            token_id: added[token_id].content.encode() if token_id in added else _piece_bytes(token)
            for token, token_id in backend.get_vocab(with_added_tokens=True).items()
        }
        self.shown = {token_id: b"" if token_id in self.special_ids else b for token_id, b in self.pieces.items()}
        self.longest_piece = max(map(len, self.pieces.values()), default=1)

    @classmethod
    def from_dir(cls, model_dir: Path) -> Tokenizer:
        """Read tokenizer.json. Raises CheckpointError that names the file."""
        file = model_dir / "tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}; the server needs it to read and write text") from None
        except ValueError as error:
            raise CheckpointError(f"{file}: not readable as UTF-8 ({error})") from None
        _demand_byte_level(text, file)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for every fault in the file
            raise CheckpointError(f"{file}: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        return cls(backend)

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is; no special tokens are added. A long text is encoded beside the loop."""
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(self.encode_now, text)
        return self.encode_now(text)

    def encode_now(self, text: str) -> list[int]:
        """`encode` for callers without a loop."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens; bytes that are no whole character show as U+FFFD, ids without a token as nothing."""
        pieces = self.shown if skip_special_tokens else self.pieces
        return b"".join([pieces.get(token_id, b"") for token_id in token_ids]).decode(errors="replace")

    def piece(self, token_id: int) -> str:
        """One token's own text."""
        return self.pieces.get(token_id, b"").decode(errors="replace")

    async def piece_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's own text. Many are looked up beside the loop."""
        if len(token_ids) > _LONG_TEXT:
            return await asyncio.to_thread(lambda: list(map(self.piece, token_ids)))
        return list(map(self.piece, token_ids))


def _demand_byte_level(text: str, file: Path) -> None:
    """Other decoders (metaspace, word pieces) put characters between tokens, which the tables here do not."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from None
    decoder: dict[str, Any] = (fields.get("decoder") if isinstance(fields, dict) else None) or {}
    parts: Sequence[dict[str, Any]] = decoder.get("decoders", [decoder])
    kinds = [part.get("type") for part in parts]
    if kinds != ["ByteLevel"]:
        raise CheckpointError(f"{file}: decoder {kinds} is not supported; a byte-level BPE (ByteLevel) is needed")


def _byte_alphabet() -> dict[int, int]:
    """The characters by which byte-level BPE writes bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {0x100 + i: byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()  # code point -> byte


def _piece_bytes(token: str) -> bytes:
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:  # not written in the alphabet: a token added as plain text
        return token.encode()
