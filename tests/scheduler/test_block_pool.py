from __future__ import annotations

import pytest

from scheduler.block_pool import BlockPool
from scheduler.prefix_cache import PrefixCache


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache()


@pytest.fixture
def pool(cache: PrefixCache) -> BlockPool:
    return BlockPool(4, cache)


def test_acquire_and_release_are_opposites(pool: BlockPool) -> None:
    blocks = pool.acquire(3)
    assert len(set(blocks)) == 3
    assert pool.num_free == 1
    pool.check([blocks])
    pool.release(blocks)
    assert pool.num_free == 4
    pool.check([])


def test_a_shared_block_is_free_after_its_last_owner(pool: BlockPool) -> None:
    blocks = pool.acquire(1)
    pool.share(blocks)
    pool.check([blocks, blocks])
    pool.release(blocks)
    assert pool.num_free == 3
    pool.release(blocks)
    assert pool.num_free == 4


def test_sharing_takes_a_block_off_the_free_list(pool: BlockPool, cache: PrefixCache) -> None:
    blocks = pool.acquire(1)
    cache.publish(b"key", blocks[0])
    pool.release(blocks)
    pool.share(blocks)
    assert not set(pool.acquire(3)) & set(blocks)
    assert pool.num_free == 0


def test_blank_blocks_go_before_published_ones(pool: BlockPool, cache: PrefixCache) -> None:
    blocks = pool.acquire(4)
    cache.publish(b"first", blocks[0])
    pool.release(blocks[:1])
    pool.release(blocks[1:])
    assert set(pool.acquire(3)) == set(blocks[1:])
    assert cache.find(b"first") == blocks[0]
    assert pool.acquire(1) == blocks[:1]
    assert cache.find(b"first") is None, "what a block held is forgotten when it changes hands"


def test_the_least_recently_used_content_goes_first_and_the_end_of_a_chain_before_its_beginning(
    pool: BlockPool, cache: PrefixCache
) -> None:
    older, newer = pool.acquire(2), pool.acquire(2)
    for number, block in enumerate([*older, *newer]):
        cache.publish(bytes([number]), block)
    pool.release(older)
    pool.release(newer)
    pool.share(older)
    pool.release(older)  # used again, hence the most recent
    assert [pool.acquire(1)[0] for _ in range(4)] == [newer[1], newer[0], older[1], older[0]]


def test_taking_too_many_and_giving_back_twice_are_mistakes(pool: BlockPool) -> None:
    with pytest.raises(AssertionError, match="5 blocks wanted, 4 are free"):
        pool.acquire(5)
    blocks = pool.acquire(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="has no owner"):
        pool.release(blocks)


def test_check_finds_a_lost_and_a_doubly_owned_block(pool: BlockPool) -> None:
    blocks = pool.acquire(2)
    with pytest.raises(AssertionError, match="owners counted, owners found"):
        pool.check([blocks[:1]])
    with pytest.raises(AssertionError, match="owners counted, owners found"):
        pool.check([blocks, blocks])
    with pytest.raises(AssertionError, match="twice in one table"):
        pool.check([[blocks[0], blocks[0]]])
