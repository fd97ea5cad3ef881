"""A token through a mixture-of-experts layer: the whole way is the body of `MoeLayer.__call__`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from experts.shard import ExpertShard
from kernels.linear import Fp8Rows
from kernels.permute import Answers
from kernels.quantise.formats import Scaling
from model.side_stream import SideStream
from router.dispatch import Dispatcher
from router.gate import Gate


@dataclass(frozen=True, slots=True)
class DenseFfn:
    """One SwiGLU every row goes through: a dense layer's, or the shared expert."""

    shard: ExpertShard  # of a single expert

    @property
    def scaling(self) -> Scaling:
        """The format that its products read rows in."""
        return self.shard.scaling

    def __call__(
        self, hidden: torch.Tensor, is_live: torch.Tensor | None = None, quantised: Fp8Rows | None = None
    ) -> torch.Tensor:
        """Hidden [T, H], perhaps with what it is quantised to -> [T, H], padding as any other row."""
        return self.shard(hidden, None, quantised=quantised)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLayer:
    """Routed experts, wherever they live, and the shared one (model-spec §2.6)."""

    gate: Gate
    dispatcher: Dispatcher
    shard: ExpertShard
    shared: DenseFfn
    beside: SideStream  # the shared expert needs no exchange, and few of a device's processors at a time

    @property
    def scaling(self) -> Scaling:
        """The format that the products of all experts read rows in, where it is one."""
        return self.shared.scaling if self.shared.scaling is self.shard.scaling else Scaling.NONE

    def __call__(
        self, hidden: torch.Tensor, is_live: torch.Tensor | None = None, quantised: Fp8Rows | None = None
    ) -> Answers:
        """Normed hidden [T, H] -> what sums to [T, H]. A collective: every rank of a group calls it, with no rows too.

        `is_live` [T] is given where every rank brings equally many rows: those that are no padding. `quantised`: what
        hidden is in the format of `scaling`.
        """
        choice = self.gate(hidden, is_live, self.dispatcher.local_load)
        if self.dispatcher.local_load is None:  # an exchange leaves memory alone meanwhile
            shared = self._beside(hidden, quantised)
            handle, rows = self.dispatcher.dispatch(hidden, choice)
        else:
            handle, rows = self.dispatcher.dispatch(hidden, choice)
            shared = self._beside(hidden, quantised)
        # Rows that travelled are quantised where they arrived.
        rows = self.shard(rows, handle.counts, handle.order, quantised if rows is hidden else None)
        self.beside.join()
        return self.dispatcher.combine(rows, handle, shared)

    def _beside(self, hidden: torch.Tensor, quantised: Fp8Rows | None) -> torch.Tensor:
        """The shared expert's answers, beside what follows up to the join.

        Not beside the choice, which waits for few bytes: while so many others come, it takes four times as long.
        """
        with self.beside.fork():
            return self.shared(hidden, quantised=quantised)
