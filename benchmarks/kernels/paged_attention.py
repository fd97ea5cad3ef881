"""Paged attention: decodes at several contexts, and prefills.

python -m benchmarks.kernels.paged_attention [--json]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.paged_batch import HEAD_DIM, HEADS, paged_batch
from benchmarks.kernels.timing import Case, report
from kernels.paged_attention import paged_attention


def case(num_sequences: int, context: int, rows: int) -> Case:
    """`rows` of each sequence attend to `context` positions, causally."""
    batch = paged_batch(num_sequences, context, rows)
    num_rows = num_sequences * rows
    query = torch.randn(num_rows, HEADS, HEAD_DIM).to(torch.bfloat16)
    seen = num_sequences * (rows * context - rows * (rows - 1) // 2)
    return Case(
        name=f"attention {num_sequences} x {rows} rows, context {context}",
        run=lambda: paged_attention(
            query, batch.kv, batch.tables, batch.row_starts, batch.contexts, batch.positions, HEAD_DIM**-0.5
        ),
        num_bytes=batch.kv.key.nbytes + batch.kv.value.nbytes,
        num_flop=4 * seen * HEADS * HEAD_DIM,
    )


if __name__ == "__main__":
    report([case(*shape) for shape in ((1, 128, 1), (32, 128, 1), (32, 1024, 1), (1, 16384, 1), (2, 1024, 1024))])
