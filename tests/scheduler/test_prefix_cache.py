from __future__ import annotations

import pytest

from scheduler.prefix_cache import PrefixCache, chain_key


def test_a_key_stands_for_the_whole_past() -> None:
    first = chain_key(b"", [1, 2])
    assert chain_key(b"", (1, 2)) == first
    assert chain_key(first, [1, 2]) != first
    assert chain_key(chain_key(b"", [9, 2]), [3, 4]) != chain_key(first, [3, 4])


def test_large_ids_do_not_run_into_each_other() -> None:
    blocks = [[1, 256], [256, 1], [65537, 0], [0, 65537], [2**31 - 1, 0], [1], [1, 0]]
    assert len({chain_key(b"", block) for block in blocks}) == len(blocks)


def test_publish_and_forget_are_opposites() -> None:
    cache = PrefixCache()
    cache.publish(b"a", 3)
    assert cache.find(b"a") == 3
    assert 3 in cache
    cache.check()
    cache.forget(3)
    assert cache.find(b"a") is None
    assert len(cache) == 0
    cache.forget(3)
    cache.check()


def test_the_first_block_with_some_content_stays_the_one() -> None:
    cache = PrefixCache()
    cache.publish(b"a", 3)
    cache.publish(b"a", 4)
    assert cache.find(b"a") == 3
    cache.forget(4)
    assert cache.find(b"a") == 3


def test_a_block_has_one_key() -> None:
    cache = PrefixCache()
    cache.publish(b"a", 3)
    cache.publish(b"b", 3)
    assert cache.find(b"b") is None
    cache.check()


def test_check_finds_a_half_forgotten_block() -> None:
    cache = PrefixCache()
    cache.publish(b"a", 3)
    cache._key_of.clear()
    with pytest.raises(AssertionError, match="1 keys, 0 blocks"):
        cache.check()
