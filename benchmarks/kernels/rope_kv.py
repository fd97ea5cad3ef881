"""QK-norm, rotation and cache write.

python -m benchmarks.kernels.rope_kv [--json]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.paged_batch import HEAD_DIM, paged_batch
from benchmarks.kernels.timing import Case, report
from kernels.rope_kv import qk_norm_rope_kv


def case(num_sequences: int, rows: int) -> Case:
    """One layer's rows; each is read once and written once."""
    batch = paged_batch(num_sequences, 1024, rows)
    weight = torch.ones(HEAD_DIM, dtype=torch.bfloat16)
    cos_sin = torch.rand(1024, HEAD_DIM // 2)
    return Case(
        name=f"rope_kv {num_sequences} x {rows} rows",
        run=lambda: qk_norm_rope_kv(batch.qkv, weight, weight, cos_sin, batch.positions, batch.slots, batch.kv, 1e-6),
        num_bytes=2 * batch.qkv.nbytes,
        num_flop=10 * batch.qkv.numel(),
    )


if __name__ == "__main__":
    report([case(*shape) for shape in ((1, 1), (32, 1), (2, 1024))])
