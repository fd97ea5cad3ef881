from __future__ import annotations

import torch

from experts.layout import ExpertShape
from experts.shard import ExpertShard

SHAPE = ExpertShape(hidden_size=32, width=16)


def filled(num_experts: int) -> tuple[ExpertShard, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shard, weights = ExpertShard.allocate(num_experts, SHAPE, torch.float32), []
    for index in range(num_experts):
        gate, up = (torch.randn(16, 32, generator=generator) * 0.2 for _ in range(2))
        weights.append((gate, up, torch.randn(32, 16, generator=generator) * 0.2))
        shard.fill(index, *weights[-1])
    return shard, weights


def test_each_row_runs_through_its_own_expert() -> None:
    shard, weights = filled(5)
    counts = [3, 0, 1, 0, 7]
    rows = torch.randn(sum(counts), 32, generator=torch.Generator().manual_seed(1))
    out = shard(rows, torch.tensor(counts, dtype=torch.int32))
    start = 0
    for count, (gate, up, down) in zip(counts, weights, strict=True):
        x = rows[start : start + count].double()
        a = x @ gate.double().T
        expected = (a * a.sigmoid() * (x @ up.double().T)) @ down.double().T
        torch.testing.assert_close(out[start : start + count].double(), expected, rtol=1e-5, atol=1e-6)
        start += count


def test_shard_without_experts_takes_no_rows() -> None:
    shard, _ = filled(0)
    assert shard(torch.empty(0, 32), torch.empty(0, dtype=torch.int32)).shape == (0, 32)


def test_size_counts_three_matrices() -> None:
    assert ExpertShape(hidden_size=4096, width=1024).num_bytes(torch.bfloat16) == 24 * 2**20  # model-spec §1
