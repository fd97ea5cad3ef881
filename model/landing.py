"""How bytes of files reach the memory that computes with them: straight, or through pinned buffers onto a GPU."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Fill = Callable[[memoryview], None]  # reads what belongs there


class Landing(Protocol):
    """Room for tensors, and the way of bytes into it. Several threads write; one takes over what they wrote."""

    def enter(self) -> None:
        """To be called by each thread before it allocates and writes."""
        ...

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Room [num_bytes] uint8, of any content."""
        ...

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        """Let `fill` say what a part of some room holds. Raises what it raises."""
        ...

    def hand_over(self, memory: torch.Tensor) -> None:
        """From here on room whose parts are all written is used by the thread that calls this."""
        ...

    def close(self) -> None:
        """Wait until nothing is on its way."""
        ...


class DirectLanding:
    """On the CPU a read writes where tensors stay."""

    def enter(self) -> None:
        """Any thread may write."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See `Landing`; memory is taken as it is written."""
        return torch.empty(num_bytes, dtype=torch.uint8, device="cpu")

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        """See `Landing`."""
        fill(part.numpy().data)

    def hand_over(self, memory: torch.Tensor) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Nothing is on its way."""


@dataclass(frozen=True, slots=True)
class _Buffer:
    memory: torch.Tensor  # [bytes] uint8
    emptied: torch.cuda.Event | None  # its last copy onto the device


class StagedLanding:
    """A ring of buffers: one is filled by a read while others are copied onto the device, on a stream of their own.

    Pinned where the device is a GPU, so that a copy takes nobody's time. Memory belongs to the copying stream until it
    is handed over; the allocator is told of both.
    """

    def __init__(self, device: torch.device, num_buffers: int, buffer_bytes: int) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        self._written = torch.cuda.Event() if is_cuda else None  # of the thread that takes over
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(num_buffers):
            memory = torch.empty(buffer_bytes, dtype=torch.uint8, device="cpu", pin_memory=is_cuda)
            # Who waits for it sleeps: others have use for the core.
            self._free.put(_Buffer(memory, torch.cuda.Event(blocking=True) if is_cuda else None))

    def enter(self) -> None:
        """See `Landing`. A thread's stream is its own: what it allocates and copies is the copying stream's."""
        if self._stream is not None:
            torch.cuda.set_stream(self._stream)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See `Landing`."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        """See `Landing`; a part is a buffer's worth at most. Waits for a buffer that nobody fills or copies."""
        buffer = self._free.get()
        try:
            if buffer.emptied is not None:
                buffer.emptied.synchronize()
            read = buffer.memory[: len(part)]
            fill(read.numpy().data)
            part.copy_(read, non_blocking=True)
            if buffer.emptied is not None:
                buffer.emptied.record(self._stream)
        finally:
            self._free.put(buffer)

    def hand_over(self, memory: torch.Tensor) -> None:
        """See `Landing`: what the caller's stream does next waits for the copies, the host does not."""
        if self._stream is not None and self._written is not None:
            current = torch.cuda.current_stream(self._device)
            self._written.record(self._stream)
            current.wait_event(self._written)
            memory.record_stream(current)

    def close(self) -> None:
        """See `Landing`. What passed through goes back to the device: the allocator would keep it for this stream."""
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
