"""Where the time of a piece of work goes, kernel by kernel, as the profiler saw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.session import Figures

_MOST_KERNELS = 30


def by_kernel(run: Callable[[], object], repeats: int) -> Figures:
    """Milliseconds a run of each kernel, the longest first; without a GPU of each of torch's own operations."""
    is_cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            run()
        if is_cuda:
            torch.cuda.synchronize()

    def self_ms(event: Any) -> float:
        return float(event.self_device_time_total if is_cuda else event.self_cpu_time_total) / repeats / 1e3

    events = sorted(profiler.key_averages(), key=self_ms, reverse=True)
    total_ms = sum(map(self_ms, events))
    if not total_ms:
        raise RuntimeError("the profiler saw no work on the device")
    return {
        "ms_of_all_kernels": total_ms,
        "kernels": [
            {
                "name": event.key[:120],
                "calls": event.count / repeats,
                "ms": self_ms(event),
                "share": self_ms(event) / total_ms,
            }
            for event in events[:_MOST_KERNELS]
            if self_ms(event)
        ],
    }
