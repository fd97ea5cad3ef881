"""Paged attention against fp64 over contiguous keys and values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.paged_attention import (
    WHOLE_CONTEXT,
    KVLayer,
    allocate_kv_layer,
    paged_attention,
    paged_attention_quantised,
)
from kernels.paged_attention.tiles import Cut
from kernels.quantise import quantise_blocks

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
    if backend == "triton" and head_dim != 16 and block_size in (1, 32):
        pytest.skip("the interpreter is slow, and block sizes and heads have little to do with each other")
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
    if backend == "triton" and dtype == torch.bfloat16 and window != 65:
        pytest.skip("the interpreter is slow, and a window hides the same whatever the dtype")
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


def scattered(draw: torch.Generator, contexts: list[int], kv: KVLayer) -> torch.Tensor:
    """Block tables [B, M] in random order; what they hold is random, and what lies past a context is NaN."""
    needed = [-(-context // kv.block_size) for context in contexts]
    order = torch.randperm(sum(needed), generator=draw).int().split(needed)
    tables = torch.full((len(contexts), max(needed)), -1, dtype=torch.int32)
    for cache in (kv.key, kv.value):
        cache.copy_(torch.randn(cache.shape, generator=draw))
    for table, blocks, context in zip(tables, order, contexts, strict=True):
        table[: len(blocks)] = blocks
        if context % kv.block_size:
            kv.key[blocks[-1], :, context % kv.block_size :] = float("nan")
            kv.value[blocks[-1], :, context % kv.block_size :] = float("nan")
    return tables


def exact_over_cache(
    query: torch.Tensor, kv: KVLayer, table: torch.Tensor, start: int, stop: int, window: int
) -> torch.Tensor:
    """Rows [start, stop) of one sequence in fp64, position by position out of the cache."""
    places = torch.arange(stop)
    blocks, offsets = table[places // kv.block_size].long(), places % kv.block_size
    key, value = kv.key[blocks, :, offsets].double(), kv.value[blocks, :, offsets].double()
    if kv.key_scale is not None and kv.value_scale is not None:
        key, value = key * kv.key_scale[:, None], value * kv.value_scale[:, None]
    group = query.shape[1] // kv.num_kv_heads
    scores = torch.einsum("tad,nad->atn", query.double(), key.repeat_interleave(group, 1)) * kv.head_dim**-0.5
    distance = torch.arange(start, stop)[:, None] - places
    weights = scores.masked_fill((distance < 0) | (distance >= window), float("-inf")).softmax(-1)
    return torch.einsum("atn,nad->tad", weights, value.repeat_interleave(group, 1)).flatten(1)


# (start, stop) of each sequence: decodes, verifies, chunks; contexts at the edges of blocks, splits and steps.
BATCHES = {
    "decodes": [(0, 1), (255, 256), (256, 257), (511, 512), (700, 701)],
    "verifies": [(300, 304), (62, 66), (0, 3), (509, 513)],
    "long verifies": [(300, 305), (60, 68), (3, 10)],
    "mixed": [(700, 701), (40, 60), (510, 518), (0, 9), (120, 131)],
    "one chunk": [(13, 90)],
}


CASES = [
    *((name, (16, 2, 32), torch.float32, WHOLE_CONTEXT) for name in BATCHES),
    *((name, (16, 2, 32), torch.float8_e4m3fn, 70) for name in BATCHES),
    *(("long verifies", (6, 2, 24), cache, 80) for cache in (torch.float32, torch.float8_e4m3fn)),
    *(("mixed", (6, 2, 24), cache, window) for cache, window in ((torch.float32, 70), (torch.float8_e4m3fn, 999))),
    *(("verifies", (2, 2, 128), cache, 70) for cache in (torch.float32, torch.float8_e4m3fn)),
]


@pytest.mark.parametrize(("name", "heads", "cache", "window"), CASES)
def test_long_contexts_and_mixed_batches_match_fp64(
    backend: str, draw: torch.Generator, name: str, heads: tuple[int, int, int], cache: torch.dtype, window: int
) -> None:
    if backend.startswith("native") and cache == torch.float32:
        pytest.skip("its keys lie in another order; chunks and decodes are above")
    num_heads, num_kv_heads, head_dim = heads
    parts = BATCHES[name]
    contexts = [stop for _, stop in parts]
    kv = allocate_kv_layer(sum(-(-stop // 16) for stop in contexts), 16, num_kv_heads, head_dim, cache, draw.device)
    if kv.key_scale is not None and kv.value_scale is not None:
        kv.key_scale.copy_(torch.tensor([0.5, 1.25]))
        kv.value_scale.copy_(torch.tensor([1.5, 0.75]))
    tables = scattered(draw, contexts, kv)
    queries = [torch.randn(stop - start, num_heads, head_dim, generator=draw) for start, stop in parts]
    starts = torch.tensor([0, *(len(query) for query in queries)]).cumsum(0).int()
    positions = torch.cat([torch.arange(start, stop, dtype=torch.int32) for start, stop in parts])
    out = paged_attention(
        *(torch.cat(queries), kv, tables, starts, torch.tensor(contexts, dtype=torch.int32), positions),
        *(head_dim**-0.5, window),
    )
    truth = torch.cat(
        [exact_over_cache(q, kv, t, *part, window) for q, t, part in zip(queries, tables, parts, strict=True)]
    )
    # Triton's queries meet FP8 keys in fp16.
    tolerance = 3e-3 if cache != torch.float32 and backend == "triton" else 1e-5
    torch.testing.assert_close(out.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cache", [torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("window", [90, WHOLE_CONTEXT])
def test_splits_of_several_steps_match_fp64(
    triton_backend: str, draw: torch.Generator, monkeypatch: pytest.MonkeyPatch, cache: torch.dtype, window: int
) -> None:
    """What a step makes ready for the next, for one and for two more, and where it ends within one."""
    four_units = Cut(share=1, most=64, long_log2=2)
    monkeypatch.setattr("kernels.paged_attention.triton_kernel.cut", lambda *_: four_units)
    parts = [(255, 256), (332, 335), (499, 500)]
    kv = allocate_kv_layer(80, 16, 1, 32, cache, draw.device)
    contexts = [stop for _, stop in parts]
    tables = scattered(draw, contexts, kv)
    tables[tables == 0] = 79
    for part in (kv.key, kv.value):  # what stands in tables and loads where nothing is to be read is nobody's
        part[79] = part[0]
        part[0] = float("nan")
    queries = [torch.randn(stop - start, 3, 32, generator=draw).bfloat16().float() for start, stop in parts]
    starts = torch.tensor([0, 1, 4, 5]).int()
    positions = torch.cat([torch.arange(start, stop, dtype=torch.int32) for start, stop in parts])
    arguments = (torch.cat(queries), kv, tables, starts, torch.tensor(contexts).int(), positions, 32**-0.5, window)
    truth = torch.cat(
        [exact_over_cache(q, kv, t, *part, window) for q, t, part in zip(queries, tables, parts, strict=True)]
    )
    tolerance = 1e-5 if cache == torch.float32 else 1e-3  # of the weights fp16 keeps eleven digits
    torch.testing.assert_close(paged_attention(*arguments).double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("magnitude", [1e-12, 1e-3, 1.0, 3e4])
def test_queries_lose_nothing_before_fp8_keys(backend: str, draw: torch.Generator, magnitude: float) -> None:
    """Of bf16, whatever their size, one head vast beside another; of the weights fp16 keeps eleven digits."""
    kv = allocate_kv_layer(20, 16, 2, 64, torch.float8_e4m3fn, draw.device)
    assert kv.key_scale is not None
    kv.key_scale.copy_(torch.tensor([1.0, 0.5]) / magnitude)
    tables = scattered(draw, [300], kv)
    query = torch.randn(3, 8, 64, generator=draw) * magnitude
    query[:, 1] *= 1e8
    query[:, :, 5] *= 30  # the others are a thirtieth of a head's largest
    query[:, :, 6] = 0
    query = query.bfloat16().float()
    starts, contexts = torch.tensor([0, 3]).int(), torch.tensor([300]).int()
    positions = torch.arange(297, 300).int()
    out = paged_attention(query, kv, tables, starts, contexts, positions, 0.125)
    truth = exact_over_cache(query, kv, tables[0], 297, 300, WHOLE_CONTEXT)
    torch.testing.assert_close(out.double(), truth, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("cache", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_results_in_fp8_are_the_quantised_results(backend: str, draw: torch.Generator, cache: torch.dtype) -> None:
    """Of a context in one split, of one in several, of a verification and of a chunk; to the last bit."""
    if backend.startswith("native") and cache == torch.bfloat16:
        pytest.skip("its keys lie in another order; nothing here depends on that")
    parts = [(20, 21), (150, 151), (70, 73), (0, 10)]
    contexts = torch.tensor([stop for _, stop in parts], dtype=torch.int32)
    kv = allocate_kv_layer(sum(-(-stop // 16) for _, stop in parts), 16, 1, 128, cache, draw.device)
    tables = scattered(draw, contexts.tolist(), kv)
    query = torch.randn(sum(stop - start for start, stop in parts), 3, 128, generator=draw).to(torch.bfloat16)
    query[0, 1], query[1, 2] = float("nan"), 0
    starts = torch.tensor([0, *(stop - start for start, stop in parts)]).cumsum(0).int()
    positions = torch.cat([torch.arange(start, stop, dtype=torch.int32) for start, stop in parts])
    arguments = (query, kv, tables, starts, contexts, positions, 0.1)
    values, scales = paged_attention_quantised(*arguments)
    expected_values, expected_scales = quantise_blocks(paged_attention(*arguments))
    assert torch.equal(scales.nan_to_num(nan=-1), expected_scales.nan_to_num(nan=-1))
    is_sound = scales.isfinite().repeat_interleave(128, 1)
    assert torch.equal(values.float()[is_sound], expected_values.float()[is_sound]) and scales.isnan().sum() == 1


def test_an_fp8_cache_gives_the_same_bits_whatever_the_chunks(exact_dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [200, 90], 16, 40, exact_dtype)
    world = replace(world, kv=allocate_kv_layer(len(world.kv.value), 16, KV_HEADS, 40, torch.float8_e4m3fn))
    whole = attend(world, [(0, 0, 200)])
    for start, stop in ((0, 1), (63, 65), (100, 101), (130, 200)):
        assert torch.equal(attend(world, [(1, 0, 90), (0, start, stop)])[90:], whole[start:stop])


def test_a_decode_does_not_know_its_neighbours(triton_backend: str, draw: torch.Generator) -> None:
    """Its splits, and so the order of its sums, follow from its own context."""
    kv = allocate_kv_layer(100, 16, 2, 32, torch.float32, draw.device)
    tables = scattered(draw, [600, 900], kv)
    query = torch.randn(2, 8, 32, generator=draw)
    starts, contexts = torch.tensor([0, 1, 2]).int(), torch.tensor([600, 900]).int()
    both = paged_attention(query, kv, tables, starts, contexts, contexts - 1, 0.2)
    one = paged_attention(query[:1], kv, tables[:1, :38].contiguous(), starts[:2], contexts[:1], contexts[:1] - 1, 0.2)
    assert torch.equal(both[:1], one)


def test_rows_and_sequences_of_padding_change_nothing(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    """Fixed shapes: sequences without rows, rows without a sequence, tables wider than any context."""
    world = make_world(draw, [70, 5, 33], 4, 16, dtype)
    for sequence, written in ((0, 68), (1, 4), (2, 30)):
        world.write(sequence, 0, written)
    rows = [(0, 68, 70), (1, 4, 5), (2, 30, 33)]
    truth = attend(world, rows)
    query = torch.cat([world.write(*part) for part in rows])
    positions = torch.cat([torch.arange(start, stop, dtype=torch.int32) for _, start, stop in rows])
    out = paged_attention(
        torch.cat([query, torch.full((6, *query.shape[1:]), float("nan"), dtype=dtype)]),
        world.kv,
        torch.nn.functional.pad(world.tables[:3], (0, 9, 0, 1)),
        torch.tensor([0, 2, 3, 6, 6], dtype=torch.int32),
        torch.tensor([70, 5, 33, 0], dtype=torch.int32),
        torch.nn.functional.pad(positions, (0, 6)),
        world.kv.head_dim**-0.5,
        max_rows=3,
    )
    torch.testing.assert_close(out[:6], truth, rtol=0, atol=0)
