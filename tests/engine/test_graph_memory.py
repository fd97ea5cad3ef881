"""A recorded graph knows addresses: whatever it reads or writes must live as long as it may be repeated.

`CudaSteps` records here without a GPU, with as much of torch.cuda as notes which memory recorded operations touch.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from engine.graphs.buckets import Buckets
from router.collectives import CollectiveCount
from scheduler.request import DraftMethod
from tests.engine.drafting_engines import draft_model
from tests.engine.graph_engines import Recorder, drafting, graph_runner, record_without_gpu
from tests.engine.mixed_requests import CPU, ROOMY, tiny

SHAPE = "C"


class Touched(TorchDispatchMode):
    """The memory that operations touch and that was there before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        alive = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
        self._before = {storage.data_ptr() for storage in _storages(alive)}
        self.found: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            if storage.data_ptr() in self._before:
                self.found[storage.data_ptr()] = StorageWeakRef(storage)
        return func(*args, **(kwargs or {}))


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in torch.utils._pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            yield leaf.untyped_storage()


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[Touched]:
    """What was touched while each graph was recorded."""
    recorded: list[Touched] = []

    @contextlib.contextmanager
    def recording(*_: object, **__: object) -> Iterator[None]:
        gc.collect()
        with Touched() as mode:
            yield
        recorded.append(mode)

    record_without_gpu(monkeypatch, recording)
    return recorded


@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP, DraftMethod.NONE])
def test_what_is_recorded_lives_as_long_as_its_graph(touched: list[Touched], method: DraftMethod) -> None:
    drafter = None if method is DraftMethod.NONE else draft_model(method, SHAPE)
    buckets = Buckets(sequences=(1, 4), rows=(1, 3))
    recorder = Recorder(CPU, CollectiveCount())
    runner, _, _ = graph_runner(drafting(ROOMY, method, 3), tiny(SHAPE), drafter, buckets=buckets, steps=recorder)
    gc.collect()
    assert len(touched) == len(buckets.all) * (1 if drafter is None else 3)
    for graph in touched:
        assert graph.found  # inputs, outputs, what drafts begin with; native kernels touch the rest unseen
        assert not any(storage.expired() for storage in graph.found.values())
    assert runner.num_ahead == 0
