"""What passes between an executor and a rank in a process of its own: one kind byte, then the body.

Data (requests, deltas, statuses) travel as msgpack frames. The few control values of start-up are pickled: both ends
are the same program on the same machine, joined by a socket pair that nobody else can open.
"""

from __future__ import annotations

import enum
import pickle
import threading
from multiprocessing.connection import Connection
from typing import Any


class Kind(enum.IntEnum):
    """First byte of a message."""

    BUILD = 0  # executor -> rank: EngineConfig, pickled
    SUBMIT = 1  # executor -> rank: request frame
    CANCEL = 2  # executor -> rank: request id, utf-8
    ASK_STATUS = 3  # executor -> rank: nothing
    STOP = 4  # executor -> rank: nothing
    STORE_OPENED = 5  # rank -> executor: StoreAddress, pickled
    PROGRESS = 6  # rank -> executor: LoadProgress, pickled
    READY = 7  # rank -> executor: GroupInfo, pickled
    DELTAS = 8  # rank -> executor: deltas frame
    STATUS = 9  # rank -> executor: status frame
    LOST = 10  # rank -> executor: reason, utf-8; the last message


class Wire:
    """One end of the pipe. Any thread may send, one receives."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Send one message. Raises OSError when the other end is gone."""
        with self._sending:
            self._connection.send_bytes(bytes((kind,)) + body)

    def send_value(self, kind: Kind, value: object) -> None:
        """Send one control value."""
        self.send(kind, pickle.dumps(value))

    def receive(self) -> tuple[Kind, bytes]:
        """Wait for one message. Raises EOFError or OSError when the other end is gone."""
        message = self._connection.recv_bytes()
        return Kind(message[0]), message[1:]

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
