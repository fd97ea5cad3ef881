"""Which block holds which tokens, for blocks whose tokens and whole past are known."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

_KEY_BYTES = 16  # collisions would serve one client another's context: 2**64 work to find any pair


def chain_key(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """The key of a full block: a digest of its tokens and of the key before it, hence of the whole past.

    `parent` is empty for the first block. Token ids must fit 32 bits.
    """
    return hashlib.blake2b(parent + array("i", token_ids).tobytes(), digest_size=_KEY_BYTES).digest()


class PrefixCache:
    """A two-way index between block keys and blocks. Knows neither sequences nor who owns a block."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._followed: set[int] = set()  # blocks that hold the draft model's keys and values, too

    def __len__(self) -> int:
        return len(self._key_of)

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    def find(self, key: bytes) -> int | None:
        """The block with this key."""
        return self._block_of.get(key)

    def is_followed(self, block: int) -> bool:
        """Whether a published block holds the draft model's keys and values, too."""
        return block in self._followed

    def publish(self, key: bytes, block: int, *, is_followed: bool = False) -> None:
        """Offer a computed block for reuse. Where another holds the same tokens already, that one stays the one.

        Unless only this one holds the draft model's part, too: then it takes the other's place.
        """
        before = self._block_of.get(key)
        if before is not None and is_followed and before not in self._followed and block not in self._key_of:
            self.forget(before)
            before = None
        if before is None and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key
            if is_followed:
                self._followed.add(block)

    def forget(self, block: int) -> None:
        """Withdraw a block, whose content is about to change. One that was never published is ignored."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
            self._followed.discard(block)

    def check(self) -> None:
        """Assert that the two directions agree."""
        assert len(self._block_of) == len(self._key_of), f"{len(self._block_of)} keys, {len(self._key_of)} blocks"
        assert self._followed <= self._key_of.keys(), "a block is followed and not published"
        found = list(map(self._block_of.get, self._key_of.values()))
        assert found == list(self._key_of), (
            f"published blocks {list(self._key_of)[:8]}.., their keys lead to {found[:8]}.."
        )
