"""The processes of a training run on one host: experts are sharded over them, talks are dealt out to them.

Every process holds the whole head and all of the model but its experts. Gradients are averaged, so heads stay alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from engine.config import StoreAddress
from engine.lockstep import host_store, join_group, reach_store

T = TypeVar("T")

_HOST = "127.0.0.1"
# Of joining, and of the slowest collective: all load the model in front of the first.
_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process among `size`, with its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and prints."""
        return self.rank == 0

    def dealt(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """Its share of the items, as many for every rank, and whether each is one that no other rank has, too."""
        rounds = -(-len(items) // self.size)
        places = [number * self.size + self.rank for number in range(rounds)]
        return [(items[min(place, len(items) - 1)], place < len(items)) for place in places]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give all ranks the mean of their gradients."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        together /= self.size
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, together.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, counts: Sequence[int]) -> list[int]:
        """Sums over all ranks."""
        if self.size == 1:
            return list(counts)
        together = torch.tensor(counts, dtype=torch.int64, device=self.device)
        dist.all_reduce(together)
        return [int(count) for count in together.tolist()]

    def firsts(self, value: float) -> float:
        """The first rank's value, for all."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return float(told.item())


def run_ranks(size: int, device: torch.device, work: Callable[[Rank, T], None], given: T) -> None:
    """Run `work` on every rank, here if there is one, else in processes of their own; returns when all are done.

    On GPUs rank r has the r-th. Raises ValueError where there are too few of them, and what `work` raises: from other
    processes as ProcessRaisedException with its text, after the others were ended.
    """
    if device.type == "cuda" and torch.cuda.device_count() < size:
        raise ValueError(f"--ranks: {size} ranks on {torch.cuda.device_count()} GPUs; each needs its own")
    if size == 1:
        work(Rank(device=device), given)
        return
    store = host_store(_HOST)
    spawn(_run, args=(size, device.type, StoreAddress(host=_HOST, port=store.port), work, given), nprocs=size)


def _run(
    rank: int, size: int, device_type: str, address: StoreAddress, work: Callable[[Rank, Any], None], given: Any
) -> None:
    device = torch.device("cpu") if device_type == "cpu" else torch.device(device_type, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = reach_store(address, _TIMEOUT_S)
    join_group(store, rank=rank, size=size, epoch=0, device=device_type, timeout_s=_TIMEOUT_S)
    try:
        work(Rank(rank=rank, size=size, device=device), given)
    finally:
        dist.destroy_process_group()
