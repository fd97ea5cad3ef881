"""A token through a mixture-of-experts layer: the whole way is the body of `MoeLayer.__call__`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from experts.shard import ExpertShard
from model.side_stream import SideStream
from router.dispatch import Dispatcher
from router.gate import Gate


@dataclass(frozen=True, slots=True)
class DenseFfn:
    """One SwiGLU every row goes through: a dense layer's, or the shared expert."""

    shard: ExpertShard  # of a single expert

    def __call__(self, hidden: torch.Tensor, is_live: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden [T, H] -> [T, H], padding as any other row."""
        counts = torch.full((1,), hidden.shape[0], dtype=torch.int32, device=hidden.device)
        return self.shard(hidden, counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLayer:
    """Routed experts, wherever they live, and the shared one (model-spec §2.6)."""

    gate: Gate
    dispatcher: Dispatcher
    shard: ExpertShard
    shared: DenseFfn
    beside: SideStream  # the shared expert needs no exchange, and few of a device's processors at a time

    def __call__(self, hidden: torch.Tensor, is_live: torch.Tensor | None = None) -> torch.Tensor:
        """Normed hidden [T, H] -> [T, H]. A collective of the group: every rank calls it, with zero rows too.

        `is_live` [T] is given where every rank brings equally many rows: those that are no padding.
        """
        with self.beside.fork():
            shared = self.shared(hidden)
        choice = self.gate(hidden)
        if is_live is not None:
            choice = choice.of_live(is_live)
        handle, rows = self.dispatcher.dispatch(hidden, choice)
        rows = self.shard(rows, handle.counts, handle.order)
        self.beside.join()
        return self.dispatcher.combine(rows, handle, shared)
