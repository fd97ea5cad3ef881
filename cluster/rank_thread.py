"""A rank inside this process: a group of one, without any process border."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable

from cluster.executor import LoadProgress, RankEvents, RankStatus
from cluster.rank_link import Listener, RankReady
from cluster.rank_report import failure, rank_info, rank_status
from engine.build import build_rank
from engine.config import EngineConfig
from engine.rank import Rank, RankLost
from scheduler.request import Request

# A poll that finds nothing only starts again.
_POLL_S = 3600.0


class ThreadRank:
    """Two threads: one builds and runs the rank, one carries its deltas to the listener."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._rank: Rank | None = None
        self._is_stopping = False
        self._threads: list[threading.Thread] = []

    def build(self, config: EngineConfig) -> None:
        """See `RankLink`."""
        self._start("rank", lambda: self._serve(config))

    def submit(self, request: Request) -> None:
        """See `RankLink`."""
        assert self._rank is not None, "a request before the rank was ready"
        try:
            self._rank.submit(request)
        except RankLost:
            return  # the listener has the reason

    def cancel(self, request_id: str) -> None:
        """See `RankLink`."""
        if self._rank is not None:
            self._rank.cancel(request_id)

    def status(self, timeout_s: float) -> RankStatus:
        """See `RankLink`."""
        if self._rank is None:
            return RankStatus(rank=0, device="", host=platform.node(), pid=os.getpid(), is_alive=False)
        return rank_status(self._rank)

    def stop(self) -> None:
        """See `RankLink`."""
        self._is_stopping = True
        if self._rank is not None:
            self._rank.stop()

    def join(self, timeout_s: float) -> None:
        """See `RankLink`. A thread cannot be forced: one that is stuck stays behind as a daemon."""
        for thread in list(self._threads):
            thread.join(timeout_s)

    def _serve(self, config: EngineConfig) -> None:
        def report(stage: str, done: int, total: int) -> None:
            self._listener(LoadProgress(rank=config.rank, stage=stage, done_bytes=done, total_bytes=total))

        try:
            rank = build_rank(config, report)
        except Exception as error:
            # Whatever stopped it: the executor must hear of it, or `start` would wait for ever.
            self._listener(RankEvents(rank=config.rank, lost=failure(error)))
            return
        self._rank = rank
        if self._is_stopping:  # asked for while there was no rank to tell
            rank.stop()
        self._start("outbox", lambda: self._carry(rank))
        self._listener(RankReady(rank=config.rank, info=rank_info(rank.facts, num_ranks=1)))
        rank.run()

    def _carry(self, rank: Rank) -> None:
        """Pass deltas on until the rank has ended."""
        try:
            while True:
                deltas = rank.poll(_POLL_S)
                if deltas:
                    self._listener(RankEvents(rank=rank.facts.rank, deltas=deltas))
        except RankLost as end:
            self._listener(RankEvents(rank=rank.facts.rank, lost=end.reason))

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"sigmoe-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()
