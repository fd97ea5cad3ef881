"""The executor's end of a rank in a process of its own. Imports no torch."""

from __future__ import annotations

import dataclasses
import pickle
import platform
import queue
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from cluster.executor import RankEvents, RankStatus
from cluster.frames import decode_deltas, decode_status, encode_request
from cluster.rank_link import Listener, RankReady, StoreOpened
from cluster.rank_wire import Kind, Wire
from engine.config import EngineConfig
from scheduler.request import Request

_ROOT = Path(__file__).resolve().parent.parent  # where `python -m cluster.rank_process` finds the rooms
_TERM_GRACE_S = 2.0


class ProcessRank:
    """Starts the process at once, so that ranks import torch side by side; a thread listens to it until it ends."""

    def __init__(self, rank: int, listener: Listener) -> None:
        self._number = rank
        self._listener = listener
        self._statuses: queue.SimpleQueue[RankStatus] = queue.SimpleQueue()
        self._asking = threading.Lock()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "cluster.rank_process", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._wire = Wire(Connection(ours.detach()))
        self._thread = threading.Thread(target=self._listen, name=f"sigmoe-rank-{rank}", daemon=True)
        self._thread.start()

    def build(self, config: EngineConfig) -> None:
        """See `RankLink`."""
        absolute = dataclasses.replace(config, model_dir=str(Path(config.model_dir).resolve()))
        self._send(Kind.BUILD, pickle.dumps(absolute))

    def submit(self, request: Request) -> None:
        """See `RankLink`."""
        self._send(Kind.SUBMIT, encode_request(request))

    def cancel(self, request_id: str) -> None:
        """See `RankLink`."""
        self._send(Kind.CANCEL, request_id.encode())

    def status(self, timeout_s: float) -> RankStatus:
        """See `RankLink`."""
        with self._asking:
            self._send(Kind.ASK_STATUS)
            try:
                return self._statuses.get(timeout=timeout_s)
            except queue.Empty:
                return RankStatus(
                    rank=self._number, device="", host=platform.node(), pid=self._process.pid, is_alive=False
                )

    def stop(self) -> None:
        """See `RankLink`."""
        self._send(Kind.STOP)

    def join(self, timeout_s: float) -> None:
        """See `RankLink`."""
        for give_up, grace_s in ((self._process.terminate, timeout_s), (self._process.kill, _TERM_GRACE_S)):
            try:
                self._process.wait(grace_s)
                break
            except subprocess.TimeoutExpired:
                give_up()
        self._process.wait()
        self._thread.join()
        self._wire.close()

    def _send(self, kind: Kind, body: bytes = b"") -> None:
        try:
            self._wire.send(kind, body)
        except OSError:
            return  # the process is gone: the listening thread reports it

    def _listen(self) -> None:
        """Pass on what the rank says; its end comes last, and in its own words where it had time for them."""
        reason = ""
        try:
            while True:
                kind, body = self._wire.receive()
                if kind is Kind.LOST:
                    reason = body.decode()
                else:
                    self._pass_on(kind, body)
        except (EOFError, OSError):
            code = self._process.wait()
        ended = f"ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
        lost = reason or f"the process of rank {self._number} (pid {self._process.pid}) {ended}"
        self._listener(RankEvents(rank=self._number, lost=lost))

    def _pass_on(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.DELTAS:
            self._listener(RankEvents(rank=self._number, deltas=decode_deltas(body)))
        elif kind is Kind.STATUS:
            self._statuses.put(decode_status(body))
        elif kind is Kind.PROGRESS:
            self._listener(pickle.loads(body))
        elif kind is Kind.READY:
            self._listener(RankReady(rank=self._number, info=pickle.loads(body)))
        else:
            assert kind is Kind.STORE_OPENED, f"unexpected {kind!r}"
            self._listener(StoreOpened(address=pickle.loads(body)))
