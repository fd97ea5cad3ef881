"""Gloo ranks that are threads of this process: many small exchanges in little time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

DEADLINE_S = 30.0


def on_ranks(size: int, run: Callable[[int], Any]) -> list[Any]:
    """`run(rank)` on so many threads at once; what they return by rank. Raises what the first of them raised."""
    found: list[Any] = [None] * size
    errors: list[Exception] = []

    def one(rank: int) -> None:
        try:
            found[rank] = run(rank)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert errors or not thread.is_alive(), "a rank waits for ever"
    if errors:
        raise errors[0]
    return found


def thread_groups(size: int) -> list[dist.ProcessGroup]:
    """The process group of each rank."""
    store = HashStore()

    def join(rank: int) -> dist.ProcessGroup:
        own = PrefixStore("ranks", store)
        gloo = dist.ProcessGroupGloo(own, rank, size, timedelta(seconds=DEADLINE_S))
        group: Any = dist.ProcessGroup(own, rank, size)
        group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        joined: dist.ProcessGroup = group
        return joined

    return on_ranks(size, join)
