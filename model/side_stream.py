"""Work that runs beside the current stream's: on a GPU a second stream, elsewhere at once.

In the recording of a CUDA graph fork and join become edges. Memory: what a fork reads must live until its join; what it
makes is the side stream's and is given back to it, and it computes again only behind the next fork.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


class SideStream:
    """One stream for all layers of a model; a fork is joined before the next."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fork(self) -> AbstractContextManager[object]:
        """What is asked for inside begins where the current stream is now, and ends by `join`."""
        if self._stream is None:
            return contextlib.nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def join(self) -> None:
        """The current stream goes on when the side's work has ended."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
