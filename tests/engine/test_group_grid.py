"""Groups of any size with chunks and blocks of any size, drafting: the tokens of one rank alone (§9 A 3).

The ranks are threads of this process, so that many groups take seconds.
"""

from __future__ import annotations

import itertools

import pytest

from engine.graphs.buckets import Buckets
from scheduler.request import DraftMethod
from tests.engine.graph_engines import plain_requests
from tests.engine.graph_groups import SHAPE, group_of
from tests.engine.mixed_requests import alone, outcome_of

METHODS = (DraftMethod.EAGLE3, DraftMethod.MTP)
SIZES, ROWS, BLOCKS = (2, 4), (5, 16, 512), (1, 4, 16)
CELLS = [
    (size, max_rows, block_size, METHODS[number % 2])
    for number, (size, max_rows, block_size) in enumerate(itertools.product(SIZES, ROWS, BLOCKS))
]
CELLS.append((8, 16, 4, DraftMethod.MTP))


def is_wrong(at: int, token: int) -> bool:
    """Every third of the drafts or so."""
    return (at * 7 + token) % 3 == 0


@pytest.mark.parametrize(("size", "max_rows", "block_size", "method"), CELLS)
def test_no_group_and_no_chunk_and_no_block_changes_a_token(
    size: int, max_rows: int, block_size: int, method: DraftMethod
) -> None:
    group = group_of(
        size,
        method,
        is_wrong=is_wrong,
        buckets=Buckets(sequences=(1, 5), rows=(1, 4)),
        block_size=block_size,
        num_blocks=64 * 16 // block_size,
        max_rows_per_step=max_rows,
        max_sequences=5,
        prefix_cache=True,
    )
    requests = plain_requests()
    told = group.run((number % size, request) for number, request in enumerate(requests))
    assert {key: tokens for key, (tokens, _) in outcome_of(told).items()} == {
        key: tokens for key, (tokens, _) in alone(SHAPE).items()
    }
    drafts = [engine.stats().drafts for engine in group.engines]
    assert sum(sum(counts.accepted) for counts in drafts) > 0
    assert len({count.total for count in group.collectives}) == 1
