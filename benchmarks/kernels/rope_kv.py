"""QK-norm, rotation and cache write.

python -m benchmarks.kernels.rope_kv [--json | --floor H20]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.kernels.timing import Case, report
from kernels.paged_attention import allocate_kv_layer
from kernels.rope_kv import qk_norm_rope_kv

BLOCK_SIZE, CONTEXT = 16, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The attention of a model; half of each head rotates."""

    name: str
    query: int
    kv: int
    dim: int


REFERENCE = Heads(name="reference", query=8, kv=2, dim=64)
ANTANGELMED = Heads(name="AntAngelMed", query=32, kv=4, dim=128)


def case(heads: Heads, num_rows: int, cache: torch.dtype) -> Case:
    """One layer's rows; each is read once and written once, keys and values in the cache's dtype."""
    kv = allocate_kv_layer(CONTEXT, BLOCK_SIZE, heads.kv, heads.dim, cache, torch.get_default_device())
    qkv = torch.randn(num_rows, (heads.query + 2 * heads.kv) * heads.dim).to(torch.bfloat16)
    weight, cos_sin = torch.ones(heads.dim, dtype=torch.bfloat16), torch.rand(CONTEXT, heads.dim // 2)
    positions = (torch.arange(num_rows) % CONTEXT).int()
    slots = torch.randperm(CONTEXT * BLOCK_SIZE)[:num_rows].int()
    kept = num_rows * 2 * heads.kv * heads.dim
    return Case(
        name=f"rope_kv {heads.name}, {num_rows} rows, {str(cache).removeprefix('torch.')} cache",
        run=lambda: qk_norm_rope_kv(qkv, weight, weight, cos_sin, positions, slots, kv, 1e-6),
        num_bytes=2 * qkv.nbytes - kept * (2 - cache.itemsize) + num_rows * (2 * heads.dim + 8),
        num_flop=10 * qkv.numel(),
    )


def cases() -> list[Case]:
    """The reference shape, and AntAngelMed's over caches of both kinds."""
    reference = [case(REFERENCE, rows, torch.bfloat16) for rows in (1, 32, 2048)]
    kinds = (torch.bfloat16, torch.float8_e4m3fn)
    return reference + [case(ANTANGELMED, rows, kind) for rows in (1, 32, 2048) for kind in kinds]


if __name__ == "__main__":
    report(cases)
