"""The block tables of sequences: what a sequence takes from the pool and the prefix cache, and gives back."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.block_pool import BlockPool
from scheduler.prefix_cache import PrefixCache, chain_key
from scheduler.sequence import Sequence


class BlockTables:
    """Fills and empties `Sequence.block_table`; nobody else writes it.

    fill / release are opposites; extend and publish happen in between.
    """

    def __init__(
        self, num_blocks: int, block_size: int, is_caching: bool, *, max_ahead: int = 0, lookahead: int = 0
    ) -> None:
        """`max_ahead` positions beyond the known tokens may be reserved for drafts.

        `lookahead` tokens after a block belong to its key: 1 where a draft model shares the blocks, whose row at a
        position depends on the token after it.
        """
        self._block_size = block_size
        self._max_ahead = max_ahead
        self._lookahead = lookahead
        self._is_caching = is_caching
        self._cache = PrefixCache()
        self._pool = BlockPool(num_blocks, self._cache)
        self.prefix_hit_tokens = 0
        self.prefix_query_tokens = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be had, those with reusable content included."""
        return self._pool.num_free

    @property
    def num_cached(self) -> int:
        """Blocks with reusable content, owned or not."""
        return len(self._cache)

    def fill(self, sequence: Sequence, num_spare: int, *, must_be_followed: bool = False) -> bool:
        """Give a waiting sequence blocks for all tokens it knows, cached ones first; `num_spare` must stay free.

        All at once, so that a sequence let in can finish its prompt. Returns whether it could; nothing is taken else.
        With `must_be_followed` it finds only blocks that hold the draft model's part, and computes the others again.
        """
        hits = self._match(sequence, must_be_followed)
        num_new = -(-len(sequence.tokens) // self._block_size) - len(hits)
        if self._num_taken(sequence, hits) + num_spare > self._pool.num_free:
            return False
        self._pool.share(hits)  # before acquire, which could evict them
        sequence.block_table = [*hits, *self._pool.acquire(num_new)]
        sequence.num_computed = len(hits) * self._block_size
        sequence.is_followed = all(map(self._cache.is_followed, hits))
        if sequence.num_preemptions == 0:  # what it finds of itself later is no hit
            self.prefix_query_tokens += len(sequence.tokens)
            self.prefix_hit_tokens += sequence.num_computed
        return True

    def num_wanted(self, sequence: Sequence, *, must_be_followed: bool = False) -> int:
        """The free blocks that `fill` would take for a waiting sequence."""
        return self._num_taken(sequence, self._match(sequence, must_be_followed))

    def lacks_block(self, sequence: Sequence) -> bool:
        """Whether a running sequence has no block yet for its newest token."""
        return not self.has_room(sequence, len(sequence.tokens))

    def has_room(self, sequence: Sequence, num_positions: int) -> bool:
        """Whether a running sequence has blocks for so many positions."""
        return len(sequence.block_table) * self._block_size >= num_positions

    def extend(self, sequence: Sequence) -> bool:
        """Give a running sequence a block for its newest token, where it needs one. Returns whether it has it."""
        if not self.lacks_block(sequence):
            return True
        if self._pool.num_free == 0:
            return False
        sequence.block_table += self._pool.acquire(1)
        return True

    def reserve(self, sequence: Sequence, num_positions: int, num_spare: int) -> int:
        """Give a running sequence blocks ahead, as far as `num_spare` stay free; returns the positions it has now."""
        table, size = sequence.block_table, self._block_size
        wanted = -(-num_positions // size) - len(table)
        if wanted > 0:
            table += self._pool.acquire(min(wanted, max(self._pool.num_free - num_spare, 0)))
        return len(table) * size

    def trim(self, sequence: Sequence) -> bool:
        """Take back what was reserved ahead; returns whether there was anything."""
        needed = -(-len(sequence.tokens) // self._block_size)
        ahead = sequence.block_table[needed:]
        if not ahead:
            return False
        del sequence.block_table[needed:]
        self._pool.release(ahead)
        return True

    def publish(self, sequence: Sequence, start: int) -> None:
        """Offer the blocks that positions [start, num_computed) have filled for reuse."""
        if not self._is_caching:
            return
        end = min(sequence.num_computed, len(sequence.tokens) - self._lookahead)
        for index in range(start // self._block_size, end // self._block_size):
            key = self._key(sequence, index)
            self._cache.publish(key, sequence.block_table[index], is_followed=sequence.is_followed)

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back. What was published stays to be found until the memory is needed."""
        self._pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = 0

    def withdraw(self, sequence: Sequence) -> None:
        """Make the content of a sequence's blocks unfindable: it is not to be trusted."""
        for block in sequence.block_table:
            self._cache.forget(block)

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Assert that the pool is whole, given all sequences that may hold blocks."""
        sequences = list(sequences)
        self._cache.check()
        self._pool.check(sequence.block_table for sequence in sequences)
        for sequence in sequences:
            room = len(sequence.block_table) * self._block_size
            assert sequence.num_computed <= min(room, len(sequence.tokens)), (
                f"sequence {sequence.sequence_id}: {sequence.num_computed} computed of {len(sequence.tokens)} "
                f"tokens in {room} positions"
            )
            assert room - self._block_size < len(sequence.tokens) + self._max_ahead, (
                f"sequence {sequence.sequence_id}: {room} positions for {len(sequence.tokens)} tokens"
            )

    def _num_taken(self, sequence: Sequence, hits: list[int]) -> int:
        """Free blocks that go to a sequence: new ones, and those it finds that nobody owns."""
        return -(-len(sequence.tokens) // self._block_size) - len(hits) + sum(map(self._pool.is_free, hits))

    def _match(self, sequence: Sequence, must_be_followed: bool) -> list[int]:
        """The cached blocks of the longest known beginning, short of the last token, which yields the logits."""
        hits: list[int] = []
        if not self._is_caching or sequence.prompt_scores is not None:  # every prompt row is to be scored
            return hits
        for index in range((len(sequence.tokens) - 1) // self._block_size):
            block = self._cache.find(self._key(sequence, index))
            if block is None or (must_be_followed and not self._cache.is_followed(block)):
                break
            hits.append(block)
        return hits

    def _key(self, sequence: Sequence, index: int) -> bytes:
        keys, size = sequence.block_keys, self._block_size
        while len(keys) <= index:
            first = len(keys) * size
            covered = sequence.tokens[first : first + size + self._lookahead]
            keys.append(chain_key(keys[-1] if keys else b"", covered))
        return keys[index]
