"""Who owns how much of the KV memory: reference counts and the order in which free blocks are used again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from scheduler.prefix_cache import PrefixCache


class BlockPool:
    """Blocks 0 .. num_blocks - 1, each with a count of owners; without owners it is free.

    A free block keeps its content as long as the prefix cache names it. Blocks are handed out from the front of the
    free list: blank ones first, then published ones, the least recently used first.
    """

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        self._owners = [0] * num_blocks
        self._cache = cache
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return len(self._owners)

    @property
    def num_free(self) -> int:
        """Blocks without an owner, those with reusable content included."""
        return len(self._free)

    def is_free(self, block: int) -> bool:
        """Whether nobody owns the block."""
        return self._owners[block] == 0

    def acquire(self, count: int) -> list[int]:
        """Become the only owner of `count` free blocks; what they held is forgotten. There must be that many."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} are free"
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._cache.forget(block)
            self._owners[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more owner of published blocks, free or not."""
        for block in blocks:
            if self._owners[block] == 0:
                del self._free[block]
            self._owners[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give up what `acquire` or `share` gave, in the order of a block table.

        The last block is evicted first: a chain of blocks is of use only from its beginning.
        """
        for block in reversed(blocks):
            assert self._owners[block] > 0, f"block {block} is released but has no owner"
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._free[block] = None
                if block not in self._cache:
                    self._free.move_to_end(block, last=False)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that the owners are exactly these block tables, and that every other block is free."""
        owners = [0] * len(self._owners)
        for table in tables:
            assert len(set(table)) == len(table), f"a block stands twice in one table: {table}"
            for block in table:
                owners[block] += 1
                assert block not in self._free, f"free block {block} has an owner"
        if owners != self._owners:
            wrong = [(b, self._owners[b], n) for b, n in enumerate(owners) if n != self._owners[b]]
            raise AssertionError(f"blocks with (id, owners counted, owners found): {wrong[:8]}")
        num_owned = len(owners) - owners.count(0)
        assert num_owned + len(self._free) == len(owners), (
            f"{num_owned} owned + {len(self._free)} free blocks of {len(owners)}"
        )
