"""QK-norm, rotation, the paged cache and attention over it against fp64, with a bf16 and an FP8 cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu import exact
from benchmarks.gpu.check import Check, Sizes
from kernels.paged_attention import KVLayer, allocate_kv_layer
from kernels.paged_attention import paged_attention as attend
from kernels.rope_kv import qk_norm_rope_kv

_BLOCK_SIZE, _EPS = 16, 1e-6
# Of what lies in the cache: three roundings to bf16, then one to e4m3, where a scale of one leaves 2^-4 of a value.
_BOUNDS = {torch.bfloat16: 0.015, torch.float8_e4m3fn: 0.075}


def rope_kv(sizes: Sizes) -> Iterator[Check]:
    """Queries as returned, keys and values as they lie in scattered slots."""
    dim, groups = sizes.head_dim, (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    for cache, bound in _BOUNDS.items():
        num_blocks = sizes.rows // _BLOCK_SIZE + 3
        kv = allocate_kv_layer(num_blocks, _BLOCK_SIZE, sizes.kv_heads, dim, cache, torch.get_default_device())
        qkv = torch.randn(sizes.rows, sum(groups) * dim).to(torch.bfloat16)
        weights = [(1 + 0.2 * torch.randn(dim)).to(torch.bfloat16) for _ in range(2)]
        angle = torch.rand(4096, dim // 4) * 6
        table = torch.cat([angle.cos(), angle.sin()], 1)
        positions = torch.randint(4096, (sizes.rows,)).int()
        slots = torch.randperm(num_blocks * _BLOCK_SIZE)[: sizes.rows].int()
        query = qk_norm_rope_kv(qkv, weights[0], weights[1], table, positions, slots, kv, _EPS)
        heads = qkv.unflatten(1, (-1, dim)).split(groups, 1)
        truth = [
            exact.rotated(exact.rms_norm(part, weight, _EPS), table[positions.long()])
            for part, weight in zip(heads, weights, strict=False)
        ]
        name = str(cache).removeprefix("torch.")
        yield Check.of(f"queries, {name} cache", query, truth[0], _BOUNDS[torch.bfloat16])
        for what, part, expected in (("keys", kv.key, truth[1]), ("values", kv.value, heads[2])):
            stored = part.double().transpose(1, 2).flatten(0, 1)[slots.long()]
            yield Check.of(f"{what}, {name} cache", stored, expected, bound)


def paged_attention(sizes: Sizes) -> Iterator[Check]:
    """A decode, a verify of four rows and a chunk in one batch over shuffled blocks, then decodes, then a verify."""
    context = 8 * sizes.rows + 3
    mixed = ((context, 1), (context // 2, 4), (context, sizes.rows))
    for cache in _BOUNDS:
        name = str(cache).removeprefix("torch.")
        yield _attention(sizes, mixed, cache, f"decode, verify and chunk, {name} cache")
        yield _attention(sizes, ((context, 1), (7, 1)), cache, f"decodes, {name} cache")
        yield _attention(sizes, ((context, 4),), cache, f"a verify, {name} cache")


def _attention(sizes: Sizes, parts: tuple[tuple[int, int], ...], cache: torch.dtype, what: str) -> Check:
    """`parts`: context and rows of each sequence; the cache's own values are what fp64 attends to."""
    width = -(-max(context for context, _ in parts) // _BLOCK_SIZE)
    num_blocks = width * len(parts)
    kv = allocate_kv_layer(num_blocks, _BLOCK_SIZE, sizes.kv_heads, sizes.head_dim, cache, torch.get_default_device())
    for part in (kv.key, kv.value):
        part.copy_(torch.randn(part.shape).to(cache))
    tables = torch.randperm(num_blocks).int().view(len(parts), width)
    rows = torch.tensor([0, *(rows for _, rows in parts)])
    query = torch.randn(int(rows.sum()), sizes.heads, sizes.head_dim).to(torch.bfloat16)
    contexts = torch.tensor([context for context, _ in parts], dtype=torch.int32)
    positions = torch.cat([torch.arange(context - rows, context, dtype=torch.int32) for context, rows in parts])
    ours = attend(query, kv, tables, rows.cumsum(0).int(), contexts, positions, sizes.head_dim**-0.5)
    queries = query.split([rows for _, rows in parts])
    truth = [
        exact.attention(part, _contiguous(kv, table, context), context - count)
        for part, table, (context, count) in zip(queries, tables, parts, strict=True)
    ]
    return Check.of(what, ours, torch.cat(truth), 0.01)


def _contiguous(kv: KVLayer, table: torch.Tensor, context: int) -> exact.Pair:
    """Keys and values [N, A_kv, D] of one sequence in the order of its positions."""
    key, value = (part.double()[table.long()].transpose(1, 2).flatten(0, 1)[:context] for part in (kv.key, kv.value))
    return key, value
