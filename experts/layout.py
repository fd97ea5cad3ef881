"""How large experts are."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """One SwiGLU expert: gate and up [I, H], down [H, I]."""

    hidden_size: int
    width: int

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one expert's weights."""
        return 3 * self.hidden_size * self.width * dtype.itemsize
