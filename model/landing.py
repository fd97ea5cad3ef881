"""How bytes of files reach the memory that computes with them: straight, or through pinned buffers onto a GPU."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

Fill = Callable[[memoryview], None]  # reads what belongs there


class Landing(Protocol):
    """Room for tensors, and the way of bytes into it. Several threads write; one takes the tensors over."""

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Room for one tensor, of any content."""
        ...

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        """Let `fill` say what a part of a tensor, [N] uint8, holds. Raises what it raises."""
        ...

    def hand_over(self, tensor: torch.Tensor) -> None:
        """From here on a tensor whose parts are all written is used by the thread that calls this."""
        ...

    def close(self) -> None:
        """Wait until nothing is on its way."""
        ...


class DirectLanding:
    """On the CPU a read writes into the tensor itself."""

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Landing`; memory is taken as it is written."""
        return torch.empty(shape, dtype=dtype)

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        """See `Landing`."""
        fill(part.numpy().data)

    def hand_over(self, tensor: torch.Tensor) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Nothing is on its way."""


@dataclass(slots=True)
class _Buffer:
    memory: torch.Tensor  # [bytes] uint8
    emptied: torch.cuda.Event | None = None  # its last copy onto the device


class StagedLanding:
    """A ring of buffers: one is filled by a read while others are copied onto the device, on a stream of their own.

    Pinned where the device is a GPU, so that a copy takes nobody's time. Tensors belong to the copying stream until
    they are handed over; the allocator is told of both.
    """

    def __init__(self, device: torch.device, num_buffers: int, buffer_bytes: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(num_buffers):
            memory = torch.empty(buffer_bytes, dtype=torch.uint8, device="cpu", pin_memory=self._stream is not None)
            self._free.put(_Buffer(memory))

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Landing`."""
        with self._copying():
            return torch.empty(shape, dtype=dtype, device=self._device)

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        """See `Landing`; a part is a buffer's worth at most. Waits for a buffer that nobody fills or copies."""
        buffer = self._free.get()
        try:
            if buffer.emptied is not None:
                buffer.emptied.synchronize()
            read = buffer.memory[: len(part)]
            fill(read.numpy().data)
            with self._copying():
                part.copy_(read, non_blocking=True)
            if self._stream is not None:
                buffer.emptied = self._stream.record_event()
        finally:
            self._free.put(buffer)

    def hand_over(self, tensor: torch.Tensor) -> None:
        """See `Landing`: what the caller's stream does next waits for the copies, the host does not."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            tensor.record_stream(current)

    def close(self) -> None:
        """See `Landing`. What passed through goes back to the device: the allocator would keep it for this stream."""
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()

    def _copying(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
