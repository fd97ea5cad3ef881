"""A rank in a process of its own: `python -m cluster.rank_process FD`, started by `ProcessRank`.

FD is this end of a socket pair. When the other end closes, the executor is gone and so is the reason to live.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection

from cluster.executor import LoadProgress
from cluster.frames import decode_request, encode_deltas, encode_status
from cluster.rank_report import failure, rank_info, rank_status
from cluster.rank_wire import Kind, Wire
from engine.build import build_rank
from engine.config import EngineConfig, StoreAddress
from engine.lockstep import host_store
from engine.rank import Rank, RankLost

_LOOPBACK = "127.0.0.1"
_POLL_S = 3600.0  # a poll that finds nothing only starts again


def main(fd: int) -> None:
    """Build the rank that the first message describes, serve, say why it ended."""
    # Ctrl-C reaches the whole terminal; the executor alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    wire = Wire(Connection(fd))
    kind, body = _receive_or_exit(wire)
    assert kind is Kind.BUILD, f"expected the configuration first, got {kind!r}"
    config: EngineConfig = pickle.loads(body)
    listener = _Commands(wire)
    try:
        rank = _build(wire, config)
    except Exception as error:
        # Whatever stopped it: the executor must hear of it, or its start would wait for ever.
        logging.getLogger(__name__).exception("event=rank_not_built rank=%d", config.rank)
        wire.send(Kind.LOST, failure(error).encode())
        return
    listener.serve(rank)
    outbox = threading.Thread(target=_carry, args=(wire, rank), name="outbox")
    outbox.start()
    wire.send_value(Kind.READY, rank_info(rank.facts, config.group_size))
    rank.run()
    outbox.join()


def _build(wire: Wire, config: EngineConfig) -> Rank:
    def report(stage: str, done: int, total: int) -> None:
        progress = LoadProgress(rank=config.rank, stage=stage, done_bytes=done, total_bytes=total)
        wire.send_value(Kind.PROGRESS, progress)

    store = None
    if config.group_size > 1 and config.rank == 0:
        store = host_store(_LOOPBACK)
        wire.send_value(Kind.STORE_OPENED, StoreAddress(host=_LOOPBACK, port=store.port))
    return build_rank(config, report, store)


def _carry(wire: Wire, rank: Rank) -> None:
    """Pass deltas on until the rank has ended."""
    try:
        while True:
            deltas = rank.poll(_POLL_S)
            if deltas:
                wire.send(Kind.DELTAS, encode_deltas(deltas))
    except RankLost as end:
        wire.send(Kind.LOST, end.reason.encode())


class _Commands:
    """The thread that listens to the executor, from before the rank exists."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._rank: Rank | None = None
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def serve(self, rank: Rank) -> None:
        """Commands go to this rank from now on."""
        self._rank = rank

    def _listen(self) -> None:
        while True:
            kind, body = _receive_or_exit(self._wire)
            if self._rank is None:
                # The executor sends nothing but STOP before READY; half a build is not worth keeping.
                os._exit(0)
            self._obey(self._rank, kind, body)

    def _obey(self, rank: Rank, kind: Kind, body: bytes) -> None:
        if kind is Kind.SUBMIT:
            self._submit(rank, body)
        elif kind is Kind.CANCEL:
            rank.cancel(body.decode())
        elif kind is Kind.ASK_STATUS:
            self._wire.send(Kind.STATUS, encode_status(rank_status(rank)))
        else:
            assert kind is Kind.STOP, f"unexpected {kind!r}"
            rank.stop()

    def _submit(self, rank: Rank, frame: bytes) -> None:
        try:
            rank.submit(decode_request(frame))
        except RankLost:
            return  # the executor hears the reason as LOST


def _receive_or_exit(wire: Wire) -> tuple[Kind, bytes]:
    """The next message; without an executor the process ends at once, whatever its other threads wait for."""
    try:
        return wire.receive()
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
