"""Paged attention against fp64 over contiguous keys and values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.paged_attention import WHOLE_CONTEXT, paged_attention

from .paged_world import HEADS, KV_HEADS, World, make_world
from .test_rope_kv import exact_heads


def attend(world: World, rows: list[tuple[int, int, int]], window: int = WHOLE_CONTEXT) -> torch.Tensor:
    """Write and attend `(sequence, start, stop)` in one batch; [T, HEADS * D]."""
    queries = [world.write(*part) for part in rows]
    starts = torch.tensor([0, *(stop - start for _, start, stop in rows)]).cumsum(0).int()
    positions = torch.cat([torch.arange(start, stop, dtype=torch.int32) for _, start, stop in rows])
    contexts = torch.tensor([stop for _, _, stop in rows], dtype=torch.int32)
    tables = world.tables[[sequence for sequence, _, _ in rows]].contiguous()
    scale = world.kv.head_dim**-0.5
    return paged_attention(torch.cat(queries), world.kv, tables, starts, contexts, positions, scale, window)


def exact(world: World, sequence: int, start: int, stop: int, window: int = WHOLE_CONTEXT) -> torch.Tensor:
    head_dim = world.kv.head_dim
    heads = world.qkv[sequence][:stop].view(stop, HEADS + 2 * KV_HEADS, head_dim)
    angles = world.cos_sin[:stop]
    query = exact_heads(heads[:, :HEADS], world.weights[0], angles)[start:]
    key = exact_heads(heads[:, HEADS : HEADS + KV_HEADS], world.weights[1], angles).repeat_interleave(
        HEADS // KV_HEADS, 1
    )
    value = heads[:, HEADS + KV_HEADS :].double().repeat_interleave(HEADS // KV_HEADS, 1)
    scores = torch.einsum("tad,nad->atn", query, key) * head_dim**-0.5
    distance = torch.arange(start, stop)[:, None] - torch.arange(stop)
    hidden = (distance < 0) | (distance >= window)
    return torch.einsum("atn,nad->tad", scores.masked_fill(hidden, float("-inf")).softmax(-1), value).flatten(1)


@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
@pytest.mark.parametrize("head_dim", [16, 64, 72])
def test_chunks_and_decodes_match_fp64(
    backend: str, dtype: torch.dtype, draw: torch.Generator, block_size: int, head_dim: int
) -> None:
    world = make_world(draw, [70, 1, 150, 40], block_size, head_dim, dtype)
    for sequence, written in ((0, 69), (2, 30), (3, 33)):
        world.write(sequence, 0, written)
    rows = [(0, 69, 70), (1, 0, 1), (2, 30, 150), (3, 33, 37)]
    truth = torch.cat([exact(world, *part) for part in rows])
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(attend(world, rows).double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [1, 5, 64, 65, 100, 150])
def test_a_window_hides_what_is_further_back(
    backend: str, dtype: torch.dtype, draw: torch.Generator, window: int
) -> None:
    world = make_world(draw, [200, 3, 150], 16, 32, dtype)
    world.write(0, 0, 199)
    rows = [(0, 199, 200), (1, 0, 3), (2, 0, 150)]
    truth = torch.cat([exact(world, *part, window) for part in rows])
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(attend(world, rows, window).double(), truth, rtol=tolerance, atol=tolerance)


def test_keys_without_a_norm_match_fp64(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = replace(make_world(draw, [90], 16, 40, dtype), weights=(None, None))
    tolerance = 2e-5 if dtype == torch.float32 else 4e-2
    ours = attend(world, [(0, 0, 90)]).double()
    torch.testing.assert_close(ours, exact(world, 0, 0, 90), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [3, 64, 130])
def test_chunking_within_a_window_changes_nothing(exact_dtype: torch.dtype, draw: torch.Generator, window: int) -> None:
    world = make_world(draw, [200], 16, 32, exact_dtype)
    whole = attend(world, [(0, 0, 200)], window)
    for start, stop in ((0, 1), (63, 66), (100, 101), (127, 131), (130, 200)):
        assert torch.equal(attend(world, [(0, start, stop)], window), whole[start:stop])


@pytest.mark.parametrize("block_size", [1, 16])
def test_chunking_and_batching_change_nothing(exact_dtype: torch.dtype, draw: torch.Generator, block_size: int) -> None:
    world = make_world(draw, [200, 90], block_size, 32, exact_dtype)
    whole = attend(world, [(0, 0, 200)])
    for start, stop in ((0, 1), (63, 65), (100, 101), (130, 200)):
        assert torch.equal(attend(world, [(1, 0, 90), (0, start, stop)])[90:], whole[start:stop])


def test_block_size_changes_nothing(exact_dtype: torch.dtype) -> None:
    outs = [
        attend(make_world(torch.Generator().manual_seed(0), [100], 16, 32, exact_dtype), [(0, 0, 100)]),
    ]
    world = make_world(torch.Generator().manual_seed(0), [100], 16, 32, exact_dtype)
    for block_size in (1, 8, 64):
        other = make_world(torch.Generator().manual_seed(1), [100], block_size, 32, exact_dtype)
        same = World(kv=other.kv, qkv=world.qkv, tables=other.tables, weights=world.weights, cos_sin=world.cos_sin)
        outs.append(attend(same, [(0, 0, 100)]))
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_stale_blocks_do_not_leak(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [40], 16, 32, dtype)
    clean = attend(world, [(0, 0, 37)])
    last = int(world.tables[0, 2])
    world.kv.value[last], world.kv.key[last] = float("nan"), float("nan")
    assert torch.equal(attend(world, [(0, 0, 37)]), clean)


def test_nan_stays_in_its_sequence(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [20, 20], 16, 32, dtype)
    world.qkv[0][3] = float("nan")
    out = attend(world, [(0, 0, 20), (1, 0, 20)])
    assert out[3:20].isnan().all() and not out[20:].isnan().any()


def test_an_empty_batch_is_valid(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [4], 4, 16, dtype)
    empty = torch.zeros(0, dtype=torch.int32)
    query = torch.zeros(0, HEADS, 16, dtype=dtype)
    starts = torch.zeros(1, dtype=torch.int32)
    out = paged_attention(query, world.kv, world.tables[:0], starts, empty, empty, 1.0)
    assert out.shape == (0, HEADS * 16)
