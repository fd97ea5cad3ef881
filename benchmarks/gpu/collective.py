"""The exchange of rows with one rank: NCCL on a GPU, gloo elsewhere. Other ranks would need other devices.

As it is, and as a recorded step has it: of fixed capacity, in a CUDA graph where there is one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, but not in its __all__

from benchmarks.gpu.clock import eager_ms
from benchmarks.gpu.session import Figures, Session
from engine.graphs.device import steps_on
from router.collectives import CollectiveCount
from router.dispatch import Dispatcher, ExpertChoice
from router.group import GroupDispatcher
from router.local import LocalDispatcher
from router.placement import Placement

TOP_K = 8


def exercise_collectives(session: Session) -> Figures:
    """A sum over the group, and rows to their experts and back, which must equal what stays in the process."""
    backend = "nccl" if session.is_cuda else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        return {"backend": backend, "num_ranks": 1} | _round_trips(session)
    finally:
        dist.destroy_process_group()


def _round_trips(session: Session) -> Figures:
    num_rows, hidden_size, num_experts = (3, 64, 16) if session.tiny else (128, 4096, 256)
    group = dist.group.WORLD
    assert group is not None, "the group was not formed"
    total = torch.ones(4)
    dist.all_reduce(total)
    hidden = torch.randn(num_rows, hidden_size).to(torch.bfloat16)
    ids = torch.rand(num_rows, num_experts).argsort(1)[:, :TOP_K].int().contiguous()
    choice = ExpertChoice(ids=ids, weights=torch.rand(num_rows, TOP_K))
    exchanged = GroupDispatcher(Placement.even(num_experts, 1), 0, group, session.device)
    expected = _there_and_back(LocalDispatcher(num_experts, session.device), hidden, choice)
    is_equal = torch.equal(_there_and_back(exchanged, hidden, choice), expected)
    recorded = _Recorded(exchanged, hidden, replace(choice, is_padded=True), session)
    is_equal_recorded = torch.equal(recorded.out, expected)
    hidden.neg_()  # what is repeated must read what lies there now
    recorded.run()
    is_equal_recorded = is_equal_recorded and torch.equal(recorded.out, -expected)
    local = LocalDispatcher(num_experts, session.device)
    return {
        "ok": is_equal and is_equal_recorded and total.tolist() == [1.0] * 4,
        "rows": num_rows,
        "exchanged_ms": eager_ms(lambda: _there_and_back(exchanged, hidden, choice), 5),
        "recorded_ms": eager_ms(recorded.run, 5),
        "local_ms": eager_ms(lambda: _there_and_back(local, hidden, choice), 5),
    }


class _Recorded:
    """A round trip of fixed capacity that `run` repeats on the same rows; what came back is in `out`."""

    def __init__(self, dispatcher: Dispatcher, hidden: torch.Tensor, choice: ExpertChoice, session: Session) -> None:
        self.out = torch.full_like(hidden, float("nan"))

        def trip() -> None:
            self.out.copy_(_there_and_back(dispatcher, hidden, choice))

        trip()  # connects the ranks, which cannot be recorded
        self.out.fill_(float("nan"))
        self.run = steps_on(session.device, CollectiveCount()).record(trip)
        self.run()


def _there_and_back(dispatcher: Dispatcher, hidden: torch.Tensor, choice: ExpertChoice) -> torch.Tensor:
    handle, rows = dispatcher.dispatch(hidden, choice)
    return dispatcher.combine(rows if handle.order is None else rows[handle.order.sources], handle).combined()
