"""How two computations of the same logits are compared (model-spec §9)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()


def top1_agreement(ours: Tensor, theirs: Tensor) -> float:
    """Share of rows with the same most likely token."""
    return (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()


def mean_kl(ours: Tensor, theirs: Tensor) -> float:
    """Mean over rows of KL(theirs || ours), nats."""
    q, p = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def random_ids(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Token ids drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, vocab_size, (count,), generator=generator).tolist()
    return ids


def assert_same(ours: Tensor, expected: Tensor, what: str) -> None:
    """Bitwise with the native kernels; torch's own matmuls round differently for different row counts."""
    if native.backend() == "torch":
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, msg=what)
    else:
        assert torch.equal(ours, expected), f"{what}: off by {(ours - expected).abs().max().item():.2e}"
