"""Every kernel against fp64 on fresh random inputs, at AntAngelMed's shapes or tiny ones.

An error is the largest difference over the largest magnitude; its bound is what the formats leave, bf16 (2^-8 a value)
and e4m3 (2^-4 a value, half a step of 448 at a scaled peak), with room for sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu import checks_attention, checks_products, checks_rows, checks_step
from benchmarks.gpu.check import Check, Sizes
from benchmarks.gpu.session import Figures, Session

FULL = Sizes(rows=257, hidden=4096, inner=1024, num_experts=256, vocab=157184, heads=32, kv_heads=4, head_dim=128)
TINY = Sizes(rows=5, hidden=256, inner=128, num_experts=16, vocab=515, heads=4, kv_heads=2, head_dim=32)

KERNELS: dict[str, Callable[[Sizes], Iterator[Check]]] = {
    "gate": checks_rows.gate,
    "rms_norm": checks_rows.rms_norm,
    "quantise": checks_rows.quantise,
    "permute": checks_rows.permute,
    "sample": checks_rows.sample,
    "step": checks_step.step,
    "linear": checks_products.linear,
    "grouped_swiglu": checks_products.grouped_swiglu,
    "rope_kv": checks_attention.rope_kv,
    "paged_attention": checks_attention.paged_attention,
}


def check_kernels(session: Session) -> Figures:
    """The errors of each kernel beside their bounds."""
    torch.manual_seed(session.seed)
    sizes = TINY if session.tiny else FULL
    return session.each({name: partial(_errors, make, sizes) for name, make in KERNELS.items()})


def _errors(make: Callable[[Sizes], Iterator[Check]], sizes: Sizes) -> Figures:
    with torch.inference_mode():
        found = list(make(sizes))
    return {
        "ok": all(check.error <= check.bound for check in found),
        "checks": [{"what": c.what, "error": c.error, "bound": c.bound} for c in found],
    }
