"""How the ranks of a group step together: one small agreement per step, one sleep when nobody has work."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from engine.config import StoreAddress
from scheduler.plan import StepShape

# A wait that runs out only starts again: the ring, not the clock, ends a sleep.
_ONE_WAIT = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNeeds:
    """What one rank brings to the agreement before a step."""

    num_rows: int
    has_work: bool
    num_sequences: int = 0
    is_leaving: bool = False
    num_steps: int = 0  # run so far; ranks that disagree would wait for one another for ever
    num_draft_passes: int = 0  # of the draft model, which may have collectives of its own
    num_collectives: int = 0  # made in all steps so far, where they are counted
    shape: StepShape | None = None  # the room it takes where it may be padded; None: it runs as it is
    is_steady: bool = False  # the step after this one may be certain while this one runs


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """What the group agreed on; the same on every rank."""

    num_rows: tuple[int, ...]  # by rank
    num_sequences: tuple[int, ...]  # by rank
    has_work: bool  # any rank: then all run the step
    is_leaving: bool  # any rank: then all stop, without running the step
    num_draft_passes: int = 0  # the most of any rank: what all run
    shape: StepShape | None = None  # that holds the step of every rank; None where one of them runs as it is
    is_steady: bool = False  # on all ranks: they agree on the next step while this one runs


class Lockstep(Protocol):
    """Keeps the ranks of a group in step. `ring` may be called by any thread, the rest by the rank's loop alone."""

    def agree(self, needs: StepNeeds) -> GroupStep:
        """Tell the others what this rank needs; returns the same answer on all. Raises when a peer is gone."""
        ...

    def sleep(self) -> None:
        """Wait, without burning CPU, until some rank rings. Agreed: all ranks sleep or none. May wake for nothing."""
        ...

    def ring(self) -> None:
        """End the current sleep of the whole group, or else the next one."""
        ...


class LocalLockstep:
    """A group of one."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def agree(self, needs: StepNeeds) -> GroupStep:
        """See `Lockstep`."""
        return GroupStep(
            num_rows=(needs.num_rows,),
            num_sequences=(needs.num_sequences,),
            has_work=needs.has_work,
            is_leaving=needs.is_leaving,
            num_draft_passes=needs.num_draft_passes,
            shape=needs.shape,
            is_steady=needs.is_steady,
        )

    def sleep(self) -> None:
        """See `Lockstep`."""
        self._rung.wait()
        self._rung.clear()

    def ring(self) -> None:
        """See `Lockstep`."""
        self._rung.set()


class GroupLockstep:
    """A group over torch.distributed; `group` must carry CPU tensors.

    Sleep number n of an epoch ends when the key `wake/<epoch>/<n>` appears in the store. Every rank counts the
    same sleeps, because each was agreed on, so all wait for the same key and whoever rings need not know who sleeps.
    """

    def __init__(self, group: dist.ProcessGroup, store: TCPStore, epoch: int = 0) -> None:
        self.store = store  # rank 0's is the server, which lives as long as this object; also what rings
        # A client serves one call at a time, and the sleeper's is taken while it waits.
        self._sleeper: Store = store.clone()  # type: ignore[attr-defined]
        self._epoch = epoch
        self._group = group
        self._gathered = [torch.zeros(10, dtype=torch.int64) for _ in range(group.size())]
        self._lock = threading.Lock()
        self._num_sleeps = 0
        self._is_asleep = False
        self._is_rung = False

    def agree(self, needs: StepNeeds) -> GroupStep:
        """See `Lockstep`."""
        mine = [
            *(needs.num_rows, needs.num_sequences, int(needs.has_work), int(needs.is_leaving)),
            *(needs.num_steps, needs.num_draft_passes, needs.num_collectives),
            *((-1, -1) if needs.shape is None else (needs.shape.num_sequences, needs.shape.most_rows)),
            int(needs.is_steady),
        ]
        self._group.allgather([self._gathered], [torch.tensor(mine, dtype=torch.int64)]).wait()
        num_rows, num_sequences, has_work, is_leaving, num_steps, num_passes, num_collectives, *shape, is_steady = zip(
            *(t.tolist() for t in self._gathered), strict=True
        )
        padded_sequences, most_rows = shape
        assert len(set(num_steps)) == 1, f"ranks ran different numbers of steps: {num_steps}"
        assert len(set(num_collectives)) == 1, f"ranks made different numbers of collectives: {num_collectives}"
        return GroupStep(
            num_rows=num_rows,
            num_sequences=num_sequences,
            has_work=any(has_work),
            is_leaving=any(is_leaving),
            num_draft_passes=max(num_passes),
            shape=None
            if min(most_rows) < 0
            else StepShape(num_sequences=max(padded_sequences), most_rows=max(most_rows)),
            is_steady=all(is_steady),
        )

    def sleep(self) -> None:
        """See `Lockstep`."""
        with self._lock:
            self._is_asleep = True
            if self._is_rung:
                self.store.set(self._key(self._num_sleeps), "")
        self._wait(self._key(self._num_sleeps))
        with self._lock:
            self._is_asleep = self._is_rung = False
            self._num_sleeps += 1
        if self._group.rank() == 0 and self._num_sleeps > 1:
            # All ranks have left the sleep before this one, since they agreed on a step after it.
            self._sleeper.delete_key(self._key(self._num_sleeps - 2))

    def ring(self) -> None:
        """See `Lockstep`."""
        with self._lock:
            if not self._is_asleep:
                self._is_rung = True
                return
            # A store that is gone has ended the sleep already, with an exception where it belongs.
            with contextlib.suppress(dist.DistNetworkError):
                self.store.set(self._key(self._num_sleeps), "")

    def _key(self, number: int) -> str:
        return f"wake/{self._epoch}/{number}"

    def _wait(self, key: str) -> None:
        while True:
            try:
                self._sleeper.wait([key], _ONE_WAIT)
                return
            except dist.DistStoreError:
                continue


def host_store(host: str) -> TCPStore:
    """Open the group's store on a port that the system chooses (`.port`); it lives as long as the object."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False)


def reach_store(address: StoreAddress, timeout_s: float) -> TCPStore:
    """Connect to the store of rank 0. Raises dist.DistError when it cannot be reached in time."""
    return TCPStore(
        address.host, address.port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
    )


def join_group(store: TCPStore, *, rank: int, size: int, epoch: int, device: str, timeout_s: float) -> None:
    """Form the default process group of this epoch; returns when all `size` ranks have joined.

    `device` is "cpu" or "cuda". `timeout_s` bounds the joining and every collective after it: it must outlast the
    slowest rank's loading.
    """
    dist.init_process_group(
        backend="gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        store=PrefixStore(f"epoch/{epoch}", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
