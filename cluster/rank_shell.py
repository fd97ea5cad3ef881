"""A rank in a process that is called from outside: builds it, runs it, keeps gateways apart that follow one another."""

from __future__ import annotations

import contextlib
import logging
import threading

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from cluster.executor import GroupInfo, LoadProgress
from cluster.frames import decode_request, encode_deltas, encode_status
from cluster.outstanding import Outstanding
from cluster.rank_report import failure, rank_info, rank_status
from engine.build import build_rank
from engine.config import EngineConfig, StoreAddress
from engine.lockstep import host_store
from engine.rank import Rank, RankLost

POLL_S = 2.0  # bounds how long a gateway's last poll outlives it


class StaleGateway(Exception):
    """Another gateway has taken over; this one's calls are void."""


class RankShell:
    """One rank for the gateway that attached last. Any thread may call; `submit`, `cancel`, `attach` in turn."""

    def __init__(self, rank: int) -> None:
        self._number = rank
        self._rank: Rank | None = None
        self._store: TCPStore | None = None
        self._progress: list[LoadProgress] = []
        self._progressed = threading.Condition()
        self._outstanding = Outstanding()
        self._gateway = ""  # whose calls count
        self._polling = threading.Lock()
        self._over = threading.Event()

    def host_store(self, host: str) -> StoreAddress:
        """Open the group's store on this machine, which others know as `host`; rank 0 alone is asked."""
        self._store = host_store(host)
        return StoreAddress(host=host, port=self._store.port)

    def build(self, config: EngineConfig) -> tuple[GroupInfo | None, str]:
        """Build the rank and let it run; returns its facts, or else why it could not be built."""
        try:
            rank = build_rank(config, self._report, self._store)
        except Exception as error:
            # Whatever stopped it: a message crosses to the controller whole, an exception may not.
            logging.getLogger(__name__).exception("event=rank_not_built rank=%d", self._number)
            return None, failure(error)
        self._rank = rank
        threading.Thread(target=self._run, args=(rank,), name="rank", daemon=True).start()
        return rank_info(rank.facts, config.group_size), ""

    def progress(self, num_seen: int, timeout_s: float) -> list[LoadProgress]:
        """Reports after the first `num_seen`, waiting for one."""
        with self._progressed:
            self._progressed.wait_for(lambda: len(self._progress) > num_seen, timeout_s)
            return self._progress[num_seen:]

    def attach(self, gateway: str) -> None:
        """Serve this gateway alone; what an earlier one had asked for is cancelled, its results are dropped."""
        self._gateway = gateway
        for request_id in self._outstanding.ids:
            self._ready.cancel(request_id)
        with self._polling:  # the last poll of the earlier one has ended
            return

    def submit(self, gateway: str, frame: bytes) -> None:
        """Take a request. One for a rank that is lost is dropped: the poll tells."""
        if gateway != self._gateway:
            raise StaleGateway(gateway)
        request = decode_request(frame)
        self._outstanding.add(request)
        with contextlib.suppress(RankLost):
            self._ready.submit(request)

    def cancel(self, request_id: str) -> None:
        """Cancel a request."""
        self._ready.cancel(request_id)

    def poll(self, gateway: str) -> tuple[bytes, str]:
        """Wait for deltas; returns their frame, and why the rank was lost once it is."""
        with self._polling:
            if gateway != self._gateway:
                raise StaleGateway(gateway)
            try:
                deltas = self._ready.poll(POLL_S)
            except RankLost as end:
                return encode_deltas(()), end.reason
            self._outstanding.settle(deltas)
            return encode_deltas(deltas), ""

    def status(self) -> bytes:
        """The rank as an operator sees it, as a frame."""
        return encode_status(rank_status(self._ready))

    def ended(self, timeout_s: float) -> str:
        """Why the loop has ended; empty if it has not within `timeout_s`."""
        self._over.wait(timeout_s)
        return self._ready.end_reason

    def stop(self, timeout_s: float) -> None:
        """Ask the group to stop after its current step and wait for that."""
        if self._rank is not None:
            self._rank.stop()
            self.ended(timeout_s)

    @property
    def _ready(self) -> Rank:
        assert self._rank is not None, f"rank {self._number} is not built"
        return self._rank

    def _run(self, rank: Rank) -> None:
        try:
            rank.run()
        finally:
            self._over.set()

    def _report(self, stage: str, done: int, total: int) -> None:
        with self._progressed:
            self._progress.append(LoadProgress(rank=self._number, stage=stage, done_bytes=done, total_bytes=total))
            self._progressed.notify_all()
