"""How matrix products and attention are cut into tiles."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.grouped_swiglu.tiles import L2_BYTES, down_tile, gate_up_tile, tiles_ahead
from kernels.linear.tiles import SPLIT_PROGRAMS, linear_tile
from kernels.linear.tiles import num_splits as linear_splits
from kernels.linear.tiles import split_tile as linear_split_tile
from kernels.paged_attention.split_kernel import split_length
from kernels.paged_attention.tiles import (
    MAX_VERIFY_ROWS,
    SPLIT_UNIT,
    Cut,
    chunk_tile,
    cut,
    has_chunks,
    merge_tile,
    most_rows,
    split_tile,
    verify_rows,
)
from kernels.permute.tile_map import tile_map
from kernels.permute.tiles import max_tiles, rows_per_tile
from kernels.quantise.formats import Scaling


@pytest.mark.parametrize(
    ("num_rows", "tile"),
    [(1, (16, 64)), (16, (16, 64)), (17, (32, 64)), (64, (64, 64)), (65, (128, 64)), (512, (128, 128))],
)
def test_more_rows_choose_larger_tiles(num_rows: int, tile: tuple[int, int]) -> None:
    chosen = linear_tile(num_rows, 5120, 1)
    assert (chosen.block_rows, chosen.block_out) == tile
    assert chosen.rows_left == (num_rows > 32)


def test_a_wide_head_has_wide_tiles_in_decode() -> None:
    assert linear_tile(1, 157184, 2).block_out == 128 and linear_tile(1, 4096, 2).block_out == 64


def test_k_is_split_where_a_decode_would_leave_the_device_idle() -> None:
    assert [linear_splits(1, num_out, 4096, 1) for num_out in (512, 4096, 5120, 16384, 157184)] == [8, 4, 4, 1, 1]
    assert [linear_splits(rows, 4096, 4096, 2) for rows in (1, 64, 65)] == [4, 4, 1]
    assert [linear_splits(1, 4096, num_in, 1) for num_in in (896, 1000, 1024, 1408, 7168)] == [1, 1, 2, 1, 4]
    assert linear_splits(1, 4096, 4096, 4) == 1


@given(num_rows=st.integers(1, 64), num_out=st.integers(1, 1 << 15), num_steps=st.integers(1, 128))
def test_parts_are_whole_steps_of_programs_that_run_at_once(num_rows: int, num_out: int, num_steps: int) -> None:
    num_in = 128 * num_steps
    for itemsize in (1, 2):
        splits, tile = linear_splits(num_rows, num_out, num_in, itemsize), linear_split_tile(num_rows, itemsize)
        if splits > 1:
            assert num_in % (splits * tile.block_in) == 0 and num_rows <= tile.block_rows
            assert -(-num_out // tile.block_out) * splits <= SPLIT_PROGRAMS
        assert tile.num_stages * (tile.block_rows + tile.block_out) * tile.block_in * itemsize <= 113 * 1024


def test_tiles_hold_twice_the_mean_of_an_expert() -> None:
    rows = [rows_per_tile(mean * 256, 256, 2, Scaling.NONE) for mean in (1, 8, 9, 16, 32, 64, 500)]
    assert rows == [16, 16, 32, 32, 64, 128, 128]
    assert rows_per_tile(8, 256, 1, Scaling.CHANNELS) == 16
    assert rows_per_tile(500 * 256, 256, 1, Scaling.BLOCKS) == 64


@given(
    num_rows=st.integers(1, 1 << 17),
    num_experts=st.integers(1, 256),
    case=st.sampled_from([(2, Scaling.NONE), (1, Scaling.BLOCKS), (1, Scaling.CHANNELS), (4, Scaling.NONE)]),
)
@settings(max_examples=200, deadline=None)
def test_every_tile_fits_and_keeps_to_its_scales(num_rows: int, num_experts: int, case: tuple[int, Scaling]) -> None:
    itemsize, scaling = case
    rows = rows_per_tile(num_rows, num_experts, itemsize, scaling)
    pair, down = gate_up_tile(rows, itemsize, scaling), down_tile(rows, itemsize)
    for tile, num_weights in ((linear_tile(num_rows, 4096, itemsize), 1), (down, 1), (pair, 2)):
        stage = (tile.block_rows + num_weights * tile.block_out) * tile.block_in * itemsize
        assert tile.num_stages * stage <= 227 * 1024
        if scaling is Scaling.BLOCKS:  # a step is one block of K, and a tile lies within one of N
            assert tile.block_in == 128 and 128 % tile.block_out == 0
    assert pair.block_rows == down.block_rows == rows
    assert scaling is not Scaling.BLOCKS or pair.block_out == 128


def test_weights_come_ahead_where_they_fit_the_cache() -> None:
    tile = gate_up_tile(16, 1, Scaling.BLOCKS)
    assert [tiles_ahead(tiles, 256, 4096, 1024, 1, tile) for tiles in (8, 16, 17)] == [8, 8, 0]
    assert [tiles_ahead(1, 1, 4096, inner, 1, tile) for inner in (1024, 2048, 9216)] == [1, 1, 0]
    assert [tiles_ahead(8, 256, 4096, inner, 1, tile) for inner in (1000, 1088)] == [0, 0]
    assert tiles_ahead(1, 1, 4096, 1024, 1, gate_up_tile(64, 1, Scaling.BLOCKS)) == 0


@given(
    num_tiles=st.integers(1, 256),
    num_experts=st.integers(1, 256),
    hidden=st.integers(1, 300).map(lambda units: units * 32),
    inner=st.integers(1, 300).map(lambda units: units * 32),
    case=st.sampled_from([(2, Scaling.NONE), (1, Scaling.BLOCKS), (1, Scaling.CHANNELS)]),
)
@settings(max_examples=300, deadline=None)
def test_what_comes_ahead_are_whole_pieces_of_weights(
    num_tiles: int, num_experts: int, hidden: int, inner: int, case: tuple[int, Scaling]
) -> None:
    """A piece is a 32nd of what a program asks for and a multiple of 16 bytes, and no program asks past the end."""
    itemsize, scaling = case
    gate_up, down = gate_up_tile(16, itemsize, scaling), down_tile(16, itemsize)
    if ahead := tiles_ahead(num_tiles, num_experts, hidden, inner, itemsize, gate_up):
        assert inner % gate_up.block_out == hidden % down.block_out == 0
        assert hidden * itemsize // 4 % 16 == 0, "of each output's weights of gate and up a half, or a quarter"
        assert hidden * gate_up.block_out * itemsize % 512 == 0 and inner * down.block_out * itemsize % 512 == 0
        assert ahead * hidden * inner * itemsize <= L2_BYTES


@given(counts=st.lists(st.integers(0, 70), min_size=1, max_size=9), block_rows=st.sampled_from([16, 32]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_map_covers_every_row_once(triton_backend: str, counts: list[int], block_rows: int) -> None:
    num_rows = sum(counts)
    seen: list[int] = []
    tiles = tile_map(torch.tensor(counts, dtype=torch.int32), num_rows, block_rows).tolist()
    assert len(tiles) == max_tiles(num_rows, len(counts), block_rows)
    for expert, first, end in tiles:
        if expert >= 0:
            assert end == sum(counts[: expert + 1]) and first >= sum(counts[:expert])
            seen += range(first, min(first + block_rows, end))
    assert sorted(seen) == list(range(num_rows))


@given(rows=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_every_sequence_is_few_rows_or_a_chunk(rows: list[int]) -> None:
    most = verify_rows(most_rows(sum(rows), len(rows)))
    assert most & (most - 1) == 0 and most <= MAX_VERIFY_ROWS
    if has_chunks(most_rows(sum(rows), len(rows))):
        assert most == MAX_VERIFY_ROWS  # what has more is a chunk
    else:
        assert max(rows) <= most


def test_attention_is_cut_by_the_context_and_the_group() -> None:
    assert verify_rows(most_rows(32, 32)) == 1 and not has_chunks(most_rows(32, 32))
    assert verify_rows(most_rows(35, 32)) == 4 and verify_rows(most_rows(128, 32)) == 8
    assert [split_tile(rows, 8, 2).block_rows for rows in (1, 2, 4, 8)] == [1, 2, 4, 4]
    assert [split_tile(rows, group, 1).num_warps for rows, group in ((8, 8), (2, 16), (4, 16))] == [4, 4, 8]
    assert [chunk_tile(group, 2).block_rows for group in (1, 6, 8, 16)] == [128, 16, 16, 8]


def of_heads(num_sequences: int, rows: int = 1, cache_itemsize: int = 2) -> Cut:
    """Of sequences with 32 heads over four KV heads of 128, on an H200."""
    num_sums = num_sequences * rows * 32
    return cut(4 * num_sequences, num_sums, 128, rows, cache_itemsize, multiprocessors=132)


def test_few_sequences_are_cut_finer_than_many() -> None:
    """So that they fill the device, and no further than the scratch memory holds their sums."""
    assert [of_heads(n).share for n in (1, 2, 8, 32, 64, 512)] == [64, 33, 8, 2, 1, 1]
    assert [of_heads(n, cache_itemsize=1).share for n in (1, 8, 32)] == [128, 16, 4]
    assert [of_heads(n).most for n in (1, 16, 32, 128, 512)] == [64, 64, 32, 8, 4]
    assert cut(4 * 256, 256 * 8 * 32, 128, 8, 2, 132).most == 4 and cut(4, 1 << 19, 128, 1, 2, 132).most == 1
    assert cut(4, 32, 128, 1, 2, multiprocessors=8).share == 4
    assert all(SPLIT_UNIT % split_tile(rows, 8, size).block_kv == 0 for rows in (1, 8) for size in (1, 2, 4))
    assert merge_tile(4 * 32).at_once == of_heads(1).most and merge_tile(128 * 32).block_heads > 1


@pytest.mark.parametrize(
    ("num_sequences", "rows", "context", "number"),
    [
        (1, 1, 1, 1),
        (1, 1, 1025, 17),
        (1, 1, 131072, 64),
        (1, 4, 131072, 64),
        (8, 1, 1025, 6),
        (8, 1, 8192, 8),
        (8, 4, 8192, 8),
        (32, 1, 8192, 8),
        (32, 4, 8192, 4),
        (32, 1, 131072, 32),
        (128, 1, 1025, 1),
        (128, 4, 4096, 2),
        (128, 1, 4096, 4),
        (128, 1, 1600, 2),
    ],
)
def test_how_many_splits_a_context_is(
    triton_backend: str, num_sequences: int, rows: int, context: int, number: int
) -> None:
    """Whatever the longest context: 1,024 positions are long enough, 2,048 of several rows; none is cut for a few."""
    assert of_heads(num_sequences, rows).num_splits(context) >= number
    assert of_heads(num_sequences, rows).num_splits(131072) >= number
    assert -(-context // length_of(context, of_heads(num_sequences, rows))) == number


@given(
    contexts=st.lists(st.integers(1, 1 << 20), min_size=2, max_size=2),
    num_sequences=st.integers(1, 600),
    rows=st.sampled_from([1, 4]),
    cache_itemsize=st.sampled_from([1, 2]),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_splits_of_any_context_are_launched(
    triton_backend: str, contexts: list[int], num_sequences: int, rows: int, cache_itemsize: int
) -> None:
    cuts = of_heads(num_sequences, rows, cache_itemsize)
    for context in contexts:
        length = length_of(context, cuts)
        assert length % SPLIT_UNIT == 0 and length > 0
        assert -(-context // length) <= cuts.num_splits(max(contexts)) <= cuts.most


def length_of(context: int, cuts: Cut) -> int:
    """As the kernels compute it."""
    length = torch.zeros(1, dtype=torch.int32)
    _length[(1,)](length, context, *cuts, UNIT=SPLIT_UNIT)
    return int(length)


@triton.jit  # type: ignore[untyped-decorator]
def _length(out, context, share, most, long_log2, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(out, split_length(context, share, most, long_log2, UNIT))
