"""Sequences whose keys and values lie scattered over the blocks of a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.paged_attention import KVLayer, allocate_kv_layer
from kernels.rope_kv import qk_norm_rope_kv

HEADS, KV_HEADS, EPS = 4, 2, 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`qkv[b]` holds every position of sequence b; position p lies in block tables[b, p // block_size]."""

    kv: KVLayer
    qkv: list[torch.Tensor]
    tables: torch.Tensor
    weights: tuple[torch.Tensor | None, torch.Tensor | None]  # of the norms of query and key heads
    cos_sin: torch.Tensor

    def write(self, sequence: int, start: int, stop: int) -> torch.Tensor:
        """Write positions [start, stop) of a sequence and return their rotated queries."""
        positions = torch.arange(start, stop, dtype=torch.int32)
        blocks = self.tables[sequence, (positions // self.kv.block_size).long()]
        slots = (blocks * self.kv.block_size + positions % self.kv.block_size).int()
        rows = self.qkv[sequence][start:stop].contiguous()
        return qk_norm_rope_kv(rows, *self.weights, self.cos_sin, positions, slots, self.kv, EPS)


def make_world(draw: torch.Generator, lengths: list[int], block_size: int, head_dim: int, dtype: torch.dtype) -> World:
    """Blocks are dealt in random order, and one that nobody owns is full of NaN."""
    needed = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(needed), generator=draw).int()
    kv = allocate_kv_layer(sum(needed) + 1, block_size, KV_HEADS, head_dim, dtype)
    kv.key[-1], kv.value[-1] = float("nan"), float("nan")
    tables = torch.full((len(lengths), max(needed)), sum(needed), dtype=torch.int32)
    for sequence, count in enumerate(needed):
        start = sum(needed[:sequence])
        tables[sequence, :count] = order[start : start + count]
    width = (HEADS + 2 * KV_HEADS) * head_dim
    qkv = [torch.randn(length, width, generator=draw).to(dtype) for length in lengths]
    weights = (torch.rand(head_dim, generator=draw).to(dtype), torch.rand(head_dim, generator=draw).to(dtype))
    angles = torch.rand(max(lengths), head_dim // 4, generator=draw) * 6
    return World(
        kv=kv, qkv=qkv, tables=tables, weights=weights, cos_sin=torch.cat([angles.cos(), angles.sin()], 1).contiguous()
    )
