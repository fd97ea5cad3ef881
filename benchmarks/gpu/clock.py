"""Time of a piece of work on the device: eager, and as a captured CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch


def as_in_a_rank() -> AbstractContextManager[Any]:
    """Nothing has a default device: while one is set, each call of torch, even `x.shape`, takes the host 1 us more."""
    without_hooks: AbstractContextManager[Any] = torch._C.DisableTorchFunction()
    return without_hooks


def eager_ms(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the best of some runs, the host's launches included; the caller has run it before."""
    with as_in_a_rank():
        return min(_once_ms(run) for _ in range(repeats))


def graph_ms(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the best of some replays of one captured run: the device's work without the host's."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return eager_ms(graph.replay, repeats)


def _once_ms(run: Callable[[], object]) -> float:
    if not torch.cuda.is_available():
        start_s = time.perf_counter()
        run()
        return (time.perf_counter() - start_s) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
