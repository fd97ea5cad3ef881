"""The seam to the device: recording work so that it can be repeated, and knowing when it is done.

On a GPU a record is a CUDA graph, which one call launches. Elsewhere it is the function itself: the same work in the
same buffers, so that everything but the recording runs, and is tested, without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from router.collectives import CollectiveCount


class Mark(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Until the device has come past it."""
        ...

    def seconds_since(self, other: Mark) -> float:
        """Of the device's work from another mark to this one; both must have been waited for."""
        ...


class StepDevice(Protocol):
    """Where the steps of a runner compute."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What repeats the work of `run`, on the same tensors. `run` was called before, and may be called again now.

        It must neither wait for the device nor depend on anything that the host learns later. All tensors that it
        refers to live as long as what is returned.
        """
        ...

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        """Memory of the host, uint8, from and to which the device copies by itself."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Ask for a copy between such memory and the device's, behind all that was asked for so far."""
        ...

    def mark(self) -> Mark:
        """The end of what was asked for so far."""
        ...


class HostMark:
    """Work of the CPU is done when the call returns."""

    def __init__(self) -> None:
        self._at_s = time.perf_counter()

    def wait(self) -> None:
        """See `Mark`."""

    def seconds_since(self, other: Mark) -> float:
        """See `Mark`."""
        assert isinstance(other, HostMark), "marks of different devices"
        return self._at_s - other._at_s


class HostSteps:
    """Steps on the CPU, or on any device without recording."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `StepDevice`."""
        return run

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        """See `StepDevice`."""
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """See `StepDevice`."""
        target.copy_(source)

    def mark(self) -> Mark:
        """See `StepDevice`."""
        return HostMark()


class CudaMark:
    """An event in the current stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def wait(self) -> None:
        """See `Mark`."""
        self._event.synchronize()

    def seconds_since(self, other: Mark) -> float:
        """See `Mark`."""
        assert isinstance(other, CudaMark), "marks of different devices"
        return float(other._event.elapsed_time(self._event)) * 1e-3


class _Recording:
    """A CUDA graph, which knows addresses, and the function whose tensors lie there.

    Without it they would be given back when the function goes, and unmapped by the next recording, which empties
    torch's cache. Nothing of the function runs again, so what it counts is counted here.
    """

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        run: Callable[[], None],
        collectives: CollectiveCount,
        num_collectives: int,
    ) -> None:
        self._graph = graph
        self._run = run
        self._collectives = collectives
        self._num_collectives = num_collectives

    def __call__(self) -> None:
        self._graph.replay()
        self._collectives.total += self._num_collectives


class CudaSteps:
    """Steps as CUDA graphs that share one pool of memory: they run one after the other, never at once."""

    def __init__(self, device: torch.device, collectives: CollectiveCount) -> None:
        self._device = device
        self._collectives = collectives
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `StepDevice`. What was compiled, tuned or connected in the call before is not recorded again."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        num_before = self._collectives.total
        # Other threads of the process (a collective's watchdog) may call CUDA meanwhile: only this one's calls count.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            run()
        return _Recording(graph, run, self._collectives, self._collectives.total - num_before)

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        """See `StepDevice`."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """See `StepDevice`."""
        target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        """See `StepDevice`."""
        return CudaMark()


def steps_on(device: torch.device, collectives: CollectiveCount) -> StepDevice:
    """What records on this device; `collectives` are those of the dispatcher that the work goes through."""
    return CudaSteps(device, collectives) if device.type == "cuda" else HostSteps()
