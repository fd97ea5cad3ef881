"""Paged attention: decodes and verifies at several contexts, and prefills; on a GPU with both kinds of cache.

python -m benchmarks.kernels.paged_attention [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.paged_batch import ANTANGELMED, REFERENCE, Heads, paged_batch
from benchmarks.kernels.timing import Case, report
from kernels.paged_attention import paged_attention

CPU_BATCHES = ((1, 128, 1), (32, 128, 1), (32, 1024, 1), (1, 16384, 1), (2, 1024, 1024))
GPU_BATCHES = (
    *((1, 1024, 1), (1, 131072, 1), (32, 1024, 1), (32, 8192, 1), (128, 4096, 1)),  # decodes
    *((1, 131072, 4), (32, 8192, 4)),  # verifies
    *((1, 8192, 8192), (1, 131072, 2048), (8, 2048, 2048)),  # chunks
)


def case(num_sequences: int, context: int, rows: int, heads: Heads, cache: torch.dtype) -> Case:
    """`rows` of each sequence attend to `context` positions, causally."""
    batch = paged_batch(num_sequences, context, rows, heads, cache)
    query = torch.randn(num_sequences * rows, heads.num, heads.dim).to(torch.bfloat16)
    seen = num_sequences * (rows * context - rows * (rows - 1) // 2)
    return Case(
        name=f"attention {num_sequences} x {rows} rows, context {context} {str(cache).removeprefix('torch.')}",
        run=lambda: paged_attention(
            *(query, batch.kv, batch.tables, batch.row_starts, batch.contexts, batch.positions, heads.dim**-0.5),
            max_rows=rows,
        ),
        num_bytes=batch.kv.key.nbytes + batch.kv.value.nbytes + 2 * query.nbytes,
        num_flop=4 * seen * heads.num * heads.dim,
        operands=torch.bfloat16,
    )


def cases() -> list[Case]:
    """What this machine is for."""
    if not torch.cuda.is_available():
        return [case(*shape, REFERENCE, torch.bfloat16) for shape in CPU_BATCHES]
    caches = (torch.bfloat16, torch.float8_e4m3fn)
    return [case(*shape, ANTANGELMED, cache) for cache in caches for shape in GPU_BATCHES]


if __name__ == "__main__":
    report(cases)
