"""Real process groups: a function runs on every rank in a process of its own, results come back by rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed import FileStore  # type: ignore[attr-defined]  # public, but not in its __all__


def run_ranks(num_ranks: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(rank, group, *args)` on gloo ranks; it must be importable. Raises what a rank raised."""
    multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]  # public, but not in its __all__
        _one_rank, (num_ranks, str(folder), function, args), nprocs=num_ranks, join=True
    )
    return [torch.load(folder / f"result_{rank}.pt") for rank in range(num_ranks)]


def _one_rank(rank: int, num_ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = FileStore(f"{folder}/store", num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    result = function(rank, dist.group.WORLD, *args)
    torch.save(result, f"{folder}/result_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
