"""The memory bandwidth that this device really has: a large copy and a large read."""

from __future__ import annotations

import torch

from benchmarks.gpu.clock import eager_ms
from benchmarks.gpu.session import Figures, Session
from benchmarks.kernels.machines import this_machine

NUM_BYTES, TINY_BYTES = 4 << 30, 1 << 20


def measure_bandwidth(session: Session) -> Figures:
    """GB/s of a copy, each byte read and written, and of a read; the better is what fractions are given of."""
    source = torch.zeros((TINY_BYTES if session.tiny else NUM_BYTES) // 4)
    target = torch.empty_like(source)
    copy_gb_s = 2 * source.nbytes / eager_ms(lambda: target.copy_(source), 10) / 1e6
    read_gb_s = source.nbytes / eager_ms(source.sum, 10) / 1e6
    best_gb_s = max(copy_gb_s, read_gb_s)
    found: Figures = {"copy_gb_s": copy_gb_s, "read_gb_s": read_gb_s, "best_gb_s": best_gb_s}
    if session.is_cuda:
        datasheet_gb_s = this_machine().gb_s
        found |= {"datasheet_gb_s": datasheet_gb_s, "of_datasheet": best_gb_s / datasheet_gb_s}
    return found


def measured_gb_s(session: Session) -> float | None:
    """What `measure_bandwidth` found, if it did."""
    found = session.report["phases"].get("bandwidth", {}).get("best_gb_s")
    return None if found is None else float(found)
